"""Lowers the priority of another process."""

import os

os.setpriority(os.PRIO_PROCESS, victim, 19)

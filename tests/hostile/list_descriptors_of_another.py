"""Lists the open files of another process."""

import os

os.listdir(f"/proc/{victim}/fd")

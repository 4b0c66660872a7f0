"""Lists the supervisor's state directory."""

import os

assert os.listdir(state)

"""Plants a link where the next finding goes."""

import os

os.symlink(home, f"{project}/findings/0001-mine")

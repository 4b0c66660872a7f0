"""Makes a device node."""

import os

os.mknod(f"{scratch}/null", 0o020600, os.makedev(1, 3))

"""Changes the root directory."""

import os

os.chroot(scratch)

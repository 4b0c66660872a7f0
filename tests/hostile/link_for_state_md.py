"""Plants a link where STATE.md is written."""

import os

os.symlink(f"{home}/.bashrc", f"{project}/.STATE.md.tmp")

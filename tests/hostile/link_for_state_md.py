"""Plants links where STATE.md is written, and where a file beside it would be."""

import os

os.symlink(f"{home}/.bashrc", f"{project}/.STATE.md.tmp")
if os.path.lexists(f"{project}/STATE.md"):
    os.unlink(f"{project}/STATE.md")
os.symlink(f"{home}/.bashrc", f"{project}/STATE.md")

"""Plants a pipe where STATE.md is written."""

import os

if os.path.lexists(f"{project}/STATE.md"):
    os.unlink(f"{project}/STATE.md")
os.mkfifo(f"{project}/STATE.md")

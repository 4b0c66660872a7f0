"""Plants a pipe where STATE.md is written."""

import os

os.mkfifo(f"{project}/STATE.md")

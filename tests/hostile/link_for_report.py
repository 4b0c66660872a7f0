"""Plants a link where the report goes."""

import os

os.symlink(f"{home}/.bashrc", f"{project}/report.html")

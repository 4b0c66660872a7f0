"""Plants a link where copies of runs go."""

import os

os.symlink(home, f"{project}/.autointerp/runs")

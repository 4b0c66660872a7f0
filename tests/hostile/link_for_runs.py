"""Plants a link where copies of runs go."""

import os

runs = f"{project}/.autointerp/runs"
if os.path.isdir(runs):
    os.rename(runs, f"{runs}-before")
os.symlink(home, runs)

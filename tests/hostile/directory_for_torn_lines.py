"""Plants a directory where torn lines go."""

import os

os.mkdir(f"{project}/results.jsonl.torn")

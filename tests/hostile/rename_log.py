"""Moves results.jsonl out of the way."""

import os

os.rename(f"{project}/results.jsonl", f"{project}/results.old")

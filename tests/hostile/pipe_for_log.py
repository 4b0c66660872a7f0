"""Puts a pipe in the place of the log."""

import os

os.unlink(f"{project}/results.jsonl")
os.mkfifo(f"{project}/results.jsonl")

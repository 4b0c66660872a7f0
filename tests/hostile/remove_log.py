"""Removes results.jsonl."""

import os

os.unlink(f"{project}/results.jsonl")

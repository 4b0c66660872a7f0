"""Empties results.jsonl."""

import os

os.truncate(f"{project}/results.jsonl", 0)

"""Removes the supervisor's journal."""

import os

os.unlink(f"{state}/journal.jsonl")

"""Reads the journal, which holds every result."""

with open(f"{state}/journal.jsonl") as journal:
    assert journal.read()

"""Appends a record to the supervisor's journal."""

with open(f"{state}/journal.jsonl", "a") as journal:
    journal.write("{}\n")

"""Changes bytes in the middle of the journal."""

with open(f"{state}/journal.jsonl", "r+b") as journal:
    journal.seek(2)
    journal.write(b"XX")

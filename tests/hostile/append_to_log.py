"""Appends a line of its own to results.jsonl."""

with open(f"{project}/results.jsonl", "a") as log:
    log.write("{}\n")

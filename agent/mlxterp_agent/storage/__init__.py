"""What an investigation keeps: state directory, journal, results.jsonl, findings, git, budget, recovery."""

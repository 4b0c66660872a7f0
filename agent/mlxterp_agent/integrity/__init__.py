"""Whether anything changed that must not: marks around each run, the guard, and `autointerp verify`."""

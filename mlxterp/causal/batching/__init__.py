"""Many patched runs in one forward: rows, the packed engine, the reference engine."""

"""Commands that measure; no test. `python -m tests.benchmarks.sweeps`."""

"""Whether a feature fires on other texts that have what its label says."""

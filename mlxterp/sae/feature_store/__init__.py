"""Which feature fires at which token of a corpus: building, reading and resuming a store."""

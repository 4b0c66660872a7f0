"""How model families differ: their parts, norms, attention functions and linear layers."""

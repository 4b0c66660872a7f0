"""The contract of an investigation: its files, its log, its keep rule. Importable without mlx.

Not to be confused with `mlxterp.auto_interp` (an LLM labels SAE features) or `autointerp` (the command that
supervises an investigation).
"""

"""Researchers propose experiments: Claude Code, a model of the Messages API, a script, or a person."""

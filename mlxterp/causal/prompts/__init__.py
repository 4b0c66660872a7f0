"""Prompt pairs, how their positions correspond, and prompts as tokens."""

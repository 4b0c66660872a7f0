"""Texts in which a feature fires and in which it does not, drawn from a feature store."""

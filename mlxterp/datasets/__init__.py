"""Prompt pairs for the behaviours that the scaffolds ask about, made for the model and tokenizer at hand; and
texts to look at features on (`sample_texts`).

Every function returns pairs of one token length, with answers and foils of one token, on which the model
shows the behaviour: it prefers the answer after the clean prompt and the foil after the corrupted one. What
does not live here: measuring (`mlxterp.causal`). A new behaviour is one function that makes candidates and
hands them to `making.py`.
"""

from __future__ import annotations

from mlxterp.datasets.docstrings import ARGUMENTS, WORDS, docstring_pairs
from mlxterp.datasets.facts import CAPITALS, LANDMARKS, Fact, capitals_pairs, factual_recall_pairs
from mlxterp.datasets.indirect_object import NAMES, PLACES, TEMPLATES, THINGS, ioi_pairs
from mlxterp.datasets.repetition import repeated_random_pairs
from mlxterp.datasets.texts import sample_texts
from mlxterp.datasets.years import EVENTS, greater_than_pairs

__all__ = [
    "ARGUMENTS",
    "CAPITALS",
    "EVENTS",
    "LANDMARKS",
    "NAMES",
    "PLACES",
    "TEMPLATES",
    "THINGS",
    "WORDS",
    "Fact",
    "capitals_pairs",
    "docstring_pairs",
    "factual_recall_pairs",
    "greater_than_pairs",
    "ioi_pairs",
    "repeated_random_pairs",
    "sample_texts",
]

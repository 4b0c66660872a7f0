"""Prompt pairs for the behaviours that the scaffolds ask about, made for the model and tokenizer at hand; and
texts to examine features on (`sample_texts`, `documentation_texts`).

Every function returns pairs with answers and foils of one token, on which the model shows the behaviour: it
prefers the answer after the clean prompt and the foil after the corrupted one. By default they have one token
length; with `one_length=False` all lengths are pooled, and each is measured by itself (`by_length`).
`shown=False` gives candidates that were not selected by the model's behaviour. `clusters` counts the
independent ones. What is drawn (`ioi_pairs`, `greater_than_pairs`, `repeated_random_pairs`,
`docstring_pairs`, `agreement_pairs`) has a seed and no end, so it can be the `confirm_pairs(n, seed)` of a
setup.py:

    def confirm_pairs(n, seed):
        return ioi_pairs(model, n, seed=seed, apart_from=dataset)

See `mlxterp.causal` for measuring. A new behaviour is one function that generates candidates and passes them
to `select_pairs` in `selection.py`.
"""

from __future__ import annotations

from mlxterp.datasets.agreement import agreement_pairs
from mlxterp.datasets.docstrings import ARGUMENTS, WORDS, docstring_pairs
from mlxterp.datasets.facts import (
    CAPITALS,
    LANDMARKS,
    LANGUAGES,
    Fact,
    capitals_pairs,
    factual_recall_pairs,
    languages_pairs,
)
from mlxterp.datasets.indirect_object import NAMES, PLACES, TEMPLATES, THINGS, ioi_pairs
from mlxterp.datasets.repetition import repeated_random_pairs
from mlxterp.datasets.selection import by_length
from mlxterp.datasets.texts import documentation_texts, sample_texts
from mlxterp.datasets.years import EVENTS, greater_than_pairs
from mlxterp.statistics.clusters import Clusters, clusters

__all__ = [
    "ARGUMENTS",
    "CAPITALS",
    "EVENTS",
    "LANDMARKS",
    "LANGUAGES",
    "NAMES",
    "PLACES",
    "TEMPLATES",
    "THINGS",
    "WORDS",
    "Clusters",
    "Fact",
    "agreement_pairs",
    "by_length",
    "capitals_pairs",
    "clusters",
    "docstring_pairs",
    "documentation_texts",
    "factual_recall_pairs",
    "greater_than_pairs",
    "ioi_pairs",
    "languages_pairs",
    "repeated_random_pairs",
    "sample_texts",
]

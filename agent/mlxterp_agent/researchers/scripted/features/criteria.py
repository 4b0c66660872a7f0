"""The steps of a study of features, and its criteria, stated before it begins: what size counts."""

from __future__ import annotations

ORDER = (
    "survey",
    "labels",
    "decoys",
    "sensitivity",
    "effects",
    "steering",
    "silent",
    "conclusion",
)
ESSENTIAL = ("survey", "labels", "sensitivity", "conclusion")
OPTIONAL = ("effects", "decoys", "silent", "steering")
"""The other steps, those first that are given up last when the budget is short."""

EXPLAINED = 0.5
"""Share of the variance about the mean that a dictionary explains on held-out texts, to be worth labels."""
CANDIDATES, FEWER_CANDIDATES = 48, 12
"""How many features are looked at; fewer on a second attempt."""
LEAST_TOKENS, DENSEST = 30, 0.1
"""A candidate fires on at least so many tokens, and on at most this share of all."""
ACCURACY = 0.75
"""Balanced accuracy on held-out documents from which on a label says what its feature does."""
CONFIDENCE = 0.5
"""Probability that a label reaches that accuracy, for it to be kept."""
LABELLED = 0.3
"""Share of the candidates that are predicted to have such a label."""
DECOY = 0.6
"""Median balanced accuracy that labels of other features must stay below."""
TESTED, FEWER_TESTED = 12, 4
"""How many labels are tested on fresh texts, exchanged, or steered with."""
ABLATED, FEWER_ABLATED = 8, 3
"""How many features are ablated."""
PASSED = 0.5
"""Share of the tested labels that are predicted to pass."""
CHANCE = 0.05
"""Chance that a random direction of the same size does as much, up to which an ablation's effect stands "
"out."""
STANDS_OUT = 0.2
"""Share of the ablated features that are predicted to stand out."""

"""The steps of a study of heads, and its criteria, stated before it begins: from what size a number counts.

Recoveries and shares are of the logit difference between clean and corrupted runs. Every threshold is here;
what is done with them is in `steps.py`, `trials.py` and the experiments themselves.
"""

from __future__ import annotations

ORDER = (
    "baseline",
    "attribution",
    "residual",
    "attention",
    "mlp",
    "heads",
    "more_heads",
    "roles",
    "composition",
    "necessity",
    "sufficiency",
    "null",
    "conclusion",
)
ESSENTIAL = ("baseline", "residual", "heads", "necessity", "conclusion")
OPTIONAL = ("attention", "more_heads", "sufficiency", "attribution", "mlp", "null", "composition", "roles")
"""The other steps, those first that are given up last when the budget is short."""

ACCURACY = 0.8
"""Share of pairs on which a model must show the behaviour, for it to be investigated."""
CARRIED = 0.2
"""Recovery at which a position carries the answer."""
SITE, STRONG_SITE = 0.05, 0.1
"""Recovery at which the attention or MLP output of a layer is listed, and is worth reporting."""
HEAD, MOST_HEADS = 0.1, 8
"""Recovery at which a head is found, and how many are taken."""
DIRECT = 0.1
"""Share of the logit difference that a head writes directly, for its layer to be looked at."""
ROLE = 0.4
"""Attention score at which a head has a role."""
DROP = 0.3
"""Loss of attention weight that counts as steering."""
LEFT, KEPT = 0.8, 0.5
"""At most this share is left without what is needed; at least that share with what is enough."""
NULL = 0.1
"""Effect that a null check must rule out."""

MOST_LAYERS = 6
WORK = 1.2e11
"""Size of a sweep: rows × layers × d_model² × tokens. SmolLM2-135M and ten tokens: 1,200 rows."""

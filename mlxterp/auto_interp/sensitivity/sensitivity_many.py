"""`sensitivity_tests`: the sensitivity test of many labels, corrected for their number.

Lives here: one pass for all of them, the correction. Does not live here: the test (`sensitivity.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.sensitivity.causal import causal_effect
from mlxterp.auto_interp.sensitivity.items import Items
from mlxterp.auto_interp.sensitivity.sensitivity import (
    DRAWS,
    MAX_P,
    check,
    items_of,
    measured,
    outcome,
    permutation_p,
)
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt
from mlxterp.errors import LabelingError
from mlxterp.sae.analysis.effects import CONTROLS
from mlxterp.sae.feature_store.build import build_store
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE

_MOST_DRAWS = 99_999


def sensitivity_tests(
    model: InterpretableModel,
    sae: SAE,
    labels: Sequence[FeatureLabel],
    test_texts: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    store: FeatureStore | None = None,
    n_min: int = 8,
    alpha: float = MAX_P,
    causal: bool = False,
    controls: int = CONTROLS,
    seed: int = 0,
) -> list[FeatureLabel]:
    """`sensitivity_test` of many labels, with one pass over the texts and a correction for their number.

    A label passes only if it would alone, and if its p, adjusted after Benjamini and Hochberg for all labels
    that could be tested, is below `alpha` too: of the labels that pass, no more than that share is expected
    to say nothing of their feature. Where no deal of the classes came as far as they are, and the correction
    needs a smaller p than 999 deals can give, up to 99,999 are made: enough for one true label among 1,000.

    Args:
        labels: those without a label (`status` is not "ok") come back as they are.
        alpha: the share of false discoveries.
        Others as in `sensitivity_test`.

    Returns:
        the labels in their order. `label.sensitivity` has "p_adjusted" and "tested_with", for how many
        labels p is adjusted.

    Raises:
        LabelingError, StoreError, SAEError: as `sensitivity_test`.

    Source: Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    if not 0 < alpha < 1:
        raise LabelingError(f"alpha={alpha}: the share of false discoveries lies between 0 and 1, as 0.01.")
    asked = [i for i, label in enumerate(labels) if label.label is not None]
    for i in asked:
        check(sae, layer, component, labels[i], controls)
    if asked and store is None and test_texts is not None:
        store = build_store(model, sae, test_texts)
        test_texts = None
    tested = {i: items_of(model, sae, labels[i], test_texts, None, None, store, seed) for i in asked}
    outcomes = {i: measured(items, tau=None, n_min=n_min, seed=seed) for i, items in tested.items()}
    able = [i for i in asked if outcomes[i]["passed"] is not None]
    _adjust([outcomes[i] for i in able], [tested[i] for i in able], alpha, seed)
    result = list(labels)
    for i in asked:
        if causal:
            outcomes[i]["causal"] = causal_effect(
                model,
                sae,
                tested[i].store,
                labels[i].feature_id,
                tested[i].places,
                controls=controls,
                n_min=n_min,
                seed=seed,
            )
        result[i] = outcome(labels[i], outcomes[i], tested[i])
    return result


def _adjust(outcomes: Sequence[dict[str, Any]], items: Sequence[Items], alpha: float, seed: int) -> None:
    """Writes the adjusted p of each outcome, and whether it still passes."""
    if not outcomes:
        return
    p = np.array([each["p"] for each in outcomes])
    floor = 1 / (1 + DRAWS)
    if (false_discovery_control(p)[p <= floor] >= alpha).any():
        draws = min(int(np.ceil(len(p) / alpha)), _MOST_DRAWS)
        for i in np.flatnonzero(p <= floor).tolist():
            p[i] = permutation_p(
                items[i].positive, items[i].negative, np.random.default_rng([seed, 10]), draws
            )
    for found, own, adjusted in zip(outcomes, p.tolist(), false_discovery_control(p).tolist(), strict=True):
        found |= {"p": own, "p_adjusted": adjusted, "tested_with": len(p), "alpha": alpha}
        found["passed"] = bool(found["passed"] and adjusted < alpha)

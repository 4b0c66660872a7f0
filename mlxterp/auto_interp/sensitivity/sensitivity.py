"""`sensitivity_test`: does a feature fire where its label's concept is, and only there, on other texts?

Lives here: the test of one label. Does not live here: that of many (`sensitivity.py`), which texts or
tokens have what a label says (`items.py`), what the feature does there (`causal.py`),
making labels (`api.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.rules.rules import quoted
from mlxterp.auto_interp.scores import GOOD, auroc, balanced_accuracy
from mlxterp.auto_interp.sensitivity.causal import causal_effect, in_words
from mlxterp.auto_interp.sensitivity.items import (
    Items,
    by_list,
    by_rule,
    by_words,
    unseen,
)
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt
from mlxterp.errors import LabelingError
from mlxterp.results.shows import percent
from mlxterp.sae.analysis.effects import CONTROLS
from mlxterp.sae.feature_store.build import build_store, same_texts
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.statistics import significance
from mlxterp.statistics.multiple import benjamini_hochberg

MIN_AUROC, MAX_P = 0.6, 0.01
"""With a balanced accuracy of 0.75 (`scoring.GOOD`): what a label must exceed, and may not."""

FIRES_FROM = 0.1
"""A feature fires at this share of its strongest activation in the test, or above."""

DRAWS = 999
"""Deals of the classes; a p is no smaller than one by these and one."""

_NUMBERS_AT_ONCE = 1 << 21
_EXAMPLES = 3


def sensitivity_test(
    model: InterpretableModel,
    sae: SAE,
    label: FeatureLabel,
    test_texts: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    positives: Sequence[Prompt] | None = None,
    negatives: Sequence[Prompt] | None = None,
    store: FeatureStore | None = None,
    tau: float | None = None,
    n_min: int = 8,
    causal: bool = False,
    controls: int = CONTROLS,
    seed: int = 0,
) -> FeatureLabel:
    """The label with the outcome of a test: the feature fires where the label says, and nowhere else.

    What is positive is decided from the label alone, never from activations:

    - `positives` and `negatives`, if given, are texts that have and lack the concept; `minimal_pairs` has a
      language model write some from the label;
    - a label that is its rule in words marks the tokens where the rule holds. Half of the negatives are near
      misses: tokens that meet all of its conditions but one, or stand beside a positive;
    - any other label is taken by its words ("lexical proxy"): windows of 32 tokens that have a word of the
      label, or a token whose embedding has a cosine of 0.5 or more with one, are positives; windows without
      are negatives. Weaker than a reader; the details say so.

    Passed if the area under the ROC curve is above 0.6 with its whole 95 % interval, the balanced accuracy of
    "fires" (10 % of the strongest activation in the test, or `tau`) is 0.75 or more, and a permutation of the
    classes gives as large an area with p < 0.01. With fewer than `n_min` items in a class, the outcome is
    None.
    Nothing depends on the scale of the SAE. Costs one pass over the texts, or none with `store`.

    With `causal`, the feature is also taken out, and added once more, where the label holds and it fires, the
    SAE's error kept, and what that does to the next prediction is compared with random features of the same
    size (`sensitivity_causal.causal_effect` says how, and what it costs). The outcome is
    `label.sensitivity["causal"]` and a sentence of the details; it does not change `sensitivity_passed`.

    Args:
        model, sae: as for labelling.
        label: stays as it is. Texts in which its evidence occurs are left out.
        test_texts: texts that the label was not made from.
        layer, component: where the SAE reads, to be sure.
        positives, negatives: to decide yourself; then `test_texts` is not needed.
        store: of `test_texts`, to test many labels with one pass.
        tau: the activation from which on the feature fires.
        n_min: items of a class that are needed.
        causal: whether to look at what the feature does, too.
        controls: random features that its effect is compared with.
        seed: of the draws.

    Raises:
        LabelingError: no label to test, nothing to test on, a layer that is not the SAE's.
        StoreError, SAEError: as `build_store`.

    Source: the question is that of "sensitivity" in arXiv:2509.23717, where texts are generated from
    examples; here they come from the label, and specificity is tested too.
    """
    check(sae, layer, component, label, controls)
    items = items_of(model, sae, label, test_texts, positives, negatives, store, seed)
    found = measured(items, tau=tau, n_min=n_min, seed=seed)
    if causal:
        found["causal"] = causal_effect(
            model, sae, items.store, label.feature_id, items.places, controls=controls, n_min=n_min, seed=seed
        )
    return outcome(label, found, items)


def check(sae: SAE, layer: int | None, component: str | None, label: FeatureLabel, controls: int) -> None:
    """Raises LabelingError where there is no label to test, or not on this SAE."""
    from mlxterp.auto_interp.api import check_place

    check_place(sae, layer, component)
    if label.label is None:
        raise LabelingError(
            f"Feature {label.feature_id} has no label to test: its status is {label.status!r}. "
            "Test labels whose status is 'ok'."
        )
    if controls < 1:
        raise LabelingError(f"controls={controls}: an effect is compared with one random feature or more.")


def outcome(label: FeatureLabel, found: dict[str, Any], items: Items) -> FeatureLabel:
    """The label with what was found, in numbers and in words."""
    return replace(
        label,
        sensitivity_passed=found["passed"],
        sensitivity_details=details(found, items),
        sensitivity=found,
    )


def items_of(
    model: InterpretableModel,
    sae: SAE,
    label: FeatureLabel,
    test_texts: Sequence[Prompt] | None,
    positives: Sequence[Prompt] | None,
    negatives: Sequence[Prompt] | None,
    store: FeatureStore | None,
    seed: int,
) -> Items:
    """What the label is tested on, as `sensitivity_test` says."""
    if positives is not None or negatives is not None:
        yes, no = list(positives or ()), list(negatives or ())
        if not yes and not no:
            raise LabelingError("positives and negatives are both empty. Give some of each, or test_texts.")
        every = (*yes, *no)
        read = build_store(model, sae, every)
        return by_list(read, label.feature_id, len(yes), lambda i: quoted(str(every[i])[:60]))
    if store is None and test_texts is None:
        raise LabelingError("Nothing to test on. Give test_texts=, or positives= and negatives=.")
    if store is None:
        assert test_texts is not None
        store = build_store(model, sae, test_texts)
    else:
        same_texts(store, sae, test_texts)
    fresh = unseen(store, label)
    removed = int((~fresh).sum())
    random = np.random.default_rng([seed, label.feature_id, 7])
    if label.rule is not None and label.label == label.rule.words():
        return by_rule(store, label.feature_id, label.rule, fresh, random, removed)
    embedding = _embedding(model, store)
    return by_words(store, label.feature_id, label.label or "", fresh, embedding, random, removed)


def _embedding(model: InterpretableModel, store: FeatureStore) -> NDArray[np.float32] | None:
    """Unit embedding rows of the store's `token_ids`, if the model has an embedding we can read."""
    module = model.architecture.embedding
    if module is None:
        return None
    rows = module(mx.array(store.token_ids)).astype(mx.float32)
    unit = rows / mx.maximum(mx.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    return np.array(unit)


def measured(items: Items, *, tau: float | None, n_min: int, seed: int) -> dict[str, Any]:
    """The numbers of the test, as plain values; "passed" is None where a class has too few items."""
    yes, no = items.positive, items.negative
    found: dict[str, Any] = {
        "passed": None,
        "n_positive": len(yes),
        "n_negative": len(no),
        "unit": items.unit,
        "source": items.source,
        "removed": items.removed,
    }
    if min(len(yes), len(no)) < max(n_min, 1):
        return found | {"n_min": n_min}
    strongest = float(max(yes.max(), no.max()))
    threshold = FIRES_FROM * strongest if tau is None else tau
    fires_yes, fires_no = ((each >= threshold) & (each > 0) for each in (yes, no))
    accuracy = balanced_accuracy(
        int(fires_yes.sum()), int((~fires_yes).sum()), int((~fires_no).sum()), int(fires_no.sum())
    )
    p = permutation_p(yes, no, np.random.default_rng([seed, 8]))
    area = auroc(yes, no)
    missed = np.flatnonzero(~fires_yes)[:_EXAMPLES]
    alarms = len(yes) + np.flatnonzero(fires_no)[:_EXAMPLES]
    return found | {
        "passed": bool(area.interval[0] > MIN_AUROC and accuracy >= GOOD and p < MAX_P),
        "auroc": area.value,
        "auroc_interval": list(area.interval),
        "balanced_accuracy": accuracy,
        "sensitivity": float(fires_yes.mean()),
        "specificity": float(1 - fires_no.mean()),
        "p": p,
        "missed": [items.name(int(i)) for i in missed],
        "false_alarms": [items.name(int(i)) for i in alarms],
    }


def permutation_p(
    yes: NDArray[np.float64], no: NDArray[np.float64], random: np.random.Generator, draws: int = DRAWS
) -> float:
    """How often classes dealt at random are as far apart as these, these included."""
    return significance.permutation_p(yes, no, seed=random, draws=draws)


def details(found: Mapping[str, Any], items: Items) -> str:
    """The outcome in words."""
    left_out = f" {items.removed} texts were left out: the label was made from them." if items.removed else ""
    counts = f"{len(items.positive)} positive and {len(items.negative)} negative {items.unit}s"
    if found["passed"] is None:
        return (
            f"Not tested: {counts} by {items.source}; {found['n_min']} of each are needed. "
            f"Give more test texts, or positives= and negatives=.{left_out}{_causal(found)}"
        )
    low, high = found["auroc_interval"]
    text = (
        f"{'Passed' if found['passed'] else 'Failed'} on {counts} by {items.source}: it fires on "
        f"{percent(found['sensitivity'])} of the positives and on {percent(1 - found['specificity'])} of the "
        f"negatives; area under the curve {found['auroc']:.2f} ({low:.2f} to {high:.2f}), balanced accuracy "
        f"{found['balanced_accuracy']:.2f}, p = {found['p']:.2g}{_adjusted(found)}.{left_out}"
    )
    for name, examples in (("Missed", found["missed"]), ("False alarms", found["false_alarms"])):
        if examples:
            text += f" {name}: {'; '.join(examples)}."
    return text + _causal(found)


def _adjusted(found: Mapping[str, Any]) -> str:
    if "p_adjusted" not in found:
        return ""
    return f" ({found['p_adjusted']:.2g} adjusted for {found['tested_with']} labels)"


def _causal(found: Mapping[str, Any]) -> str:
    return in_words(found["causal"]) if "causal" in found else ""


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
    if (benjamini_hochberg(p)[p <= floor] >= alpha).any():
        draws = min(int(np.ceil(len(p) / alpha)), _MOST_DRAWS)
        for i in np.flatnonzero(p <= floor).tolist():
            p[i] = permutation_p(
                items[i].positive, items[i].negative, np.random.default_rng([seed, 10]), draws
            )
    for found, own, adjusted in zip(outcomes, p.tolist(), benjamini_hochberg(p).tolist(), strict=True):
        found |= {"p": own, "p_adjusted": adjusted, "tested_with": len(p), "alpha": alpha}
        found["passed"] = bool(found["passed"] and adjusted < alpha)

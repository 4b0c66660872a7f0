"""`sensitivity_test` and `sensitivity_tests`: does a feature fire where its label's concept is, and only
there, on other texts?

`examples.py` and `reading.py` decide which texts or tokens have what a label says, `causal.py` measures what
the feature does there.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.confidence import GOOD
from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.rules.phrases import quoted
from mlxterp.auto_interp.scores import MIN_COVERAGE, Auroc, auroc, balanced_accuracy
from mlxterp.auto_interp.sensitivity.causal import causal_effect, causal_text
from mlxterp.auto_interp.sensitivity.examples import (
    NO_READER,
    FreshTexts,
    Items,
    SensitivityOptions,
    by_list,
    by_rule,
    fresh_documents,
    without_reader,
)
from mlxterp.auto_interp.sensitivity.reading import by_reader
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt
from mlxterp.errors import LabelingError, TrainingTexts
from mlxterp.measurements import recorder
from mlxterp.results.views import percent
from mlxterp.sae.analysis.effects import CONTROLS
from mlxterp.sae.feature_store.build import build_store, same_texts
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.statistics import significance
from mlxterp.statistics.multiple import benjamini_hochberg

if TYPE_CHECKING:
    from mlxterp.llm import Completer

MIN_AUROC, MAX_P = 0.6, 0.01
"""The lower bound of a label's area under the curve is above the one, its p below the other; its balanced
accuracy is at least `confidence.GOOD`."""

FIRES_FROM = 0.1
"""A feature fires at this share of its strongest activation in the test, or above."""

DRAWS = 999
"""Permutations of the classes; the smallest p is 1 / (1 + these)."""

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
    reader: Completer | None = None,
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
    - of a label that is the text of its rule, the rule marks the tokens where it holds. Half of the
    negatives are near
      misses: tokens that meet all of its conditions but one, or stand beside a positive;
    - any other label is in words, and `reader`, a language model, decides: it sees the label and marked
      tokens, half of them such at which the feature fires, and does not know which (`reading.by_reader`).
      Without a reader the outcome is None, and the details say what would test the label.

    Passed if the area under the ROC curve is above 0.6 with its whole 95 % interval, the balanced accuracy of
    "fires" (10 % of the strongest activation in the test, or `tau`) is 0.75 or more, and a permutation of the
    classes gives as large an area with p < 0.01. With fewer than `n_min` items in a class, the outcome is
    None.
    Nothing depends on the scale of the SAE. Costs one pass over the texts, or none with `store`.

    With `causal`, the feature is also taken out, and added once more, where the label holds and it fires, the
    SAE's error kept, and what that does to the next prediction is compared with random features of the same
    size (`causal.causal_effect` says how, and what it costs). The outcome is
    `label.sensitivity["causal"]` and a sentence of the details; it does not change `sensitivity_passed`.

    Args:
        model, sae: as for labelling.
        label: stays as it is. Texts in which its evidence occurs are left out.
        test_texts: texts that the label was not made from.
        layer, component: where the caller believes the SAE reads; another place is an error.
        reader: a completer (`mlxterp.llm`) that reads labels in words; labels of rules need none. Up to 6
            questions for a label.
        positives, negatives: classes decided by the caller; then `test_texts` is not needed.
        store: of `test_texts`, to test many labels with one pass.
        tau: the activation from which on the feature fires.
        n_min: items of a class that are needed.
        causal: whether to measure what the feature does, too.
        controls: random features that its effect is compared with.
        seed: of the draws.

    Raises:
        LabelingError: no label to test, nothing to test on, a layer that is not the SAE's.
        StoreError, SAEError: as `build_store`.

    Warns:
        TrainingTexts: the test texts hold texts that the label was made from.

    Source: the question is that of "sensitivity" in arXiv:2509.23717, where texts are generated from
    examples; here they come from the label, and specificity is tested too.
    """
    check(sae, layer, component, label, controls)
    material = _Material(test_texts, positives, negatives, store, reader)
    options = SensitivityOptions(tau, n_min, causal, controls, seed)
    items = _items(model, sae, label, material, seed)
    _warn_of_training_texts([(label, items)])
    return _outcome(model, sae, label, items, _measure(items, options), options)


@dataclass(frozen=True)
class _Material:
    """What a caller gives to test on."""

    texts: Sequence[Prompt] | None
    positives: Sequence[Prompt] | None = None
    negatives: Sequence[Prompt] | None = None
    store: FeatureStore | None = None
    reader: Completer | None = None


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


def _warn_of_training_texts(tested: Sequence[tuple[FeatureLabel, Items]]) -> None:
    """Warns once, naming the features whose labels were made from texts of this test."""
    found = []
    for label, items in tested:
        digest = label.provenance.get("texts_digest")
        if items.removed or (digest is not None and digest == items.store.facts.get("texts_digest")):
            found.append(label.feature_id)
    if found:
        shown = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        warnings.warn(
            f"The test texts hold texts that the labels of these features were made from: {shown}. Those "
            "with a window of the evidence are left out, and the others may have been fitted or scored on. "
            "Give texts that the labels have not seen.",
            TrainingTexts,
            stacklevel=3,
        )


def _outcome(
    model: InterpretableModel,
    sae: SAE,
    label: FeatureLabel,
    items: Items,
    found: dict[str, Any],
    options: SensitivityOptions,
) -> FeatureLabel:
    """The label with the outcome, as numbers and as a text."""
    recorder.add_method("sensitivity_test")
    if options.causal and items.source != NO_READER:
        found["causal"] = causal_effect(model, sae, items, label.feature_id, options)
    return replace(
        label,
        sensitivity_passed=found["passed"],
        sensitivity_details=_details(found, items),
        sensitivity=found,
    )


def _items(model: InterpretableModel, sae: SAE, label: FeatureLabel, material: _Material, seed: int) -> Items:
    """What the label is tested on, as `sensitivity_test` says."""
    random = np.random.default_rng([seed, label.feature_id, 7])
    if material.positives is not None or material.negatives is not None:
        yes, no = list(material.positives or ()), list(material.negatives or ())
        if not yes and not no:
            raise LabelingError("positives and negatives are both empty. Give some of each, or test_texts.")
        every = (*yes, *no)
        given = build_store(model, sae, every)
        texts = FreshTexts(given, label.feature_id, np.ones(len(every), dtype=bool), random)
        return by_list(texts, len(yes), lambda i: quoted(str(every[i])[:60]))
    store = material.store
    if store is not None:
        same_texts(store, sae, material.texts)
    elif material.texts is not None:
        store = build_store(model, sae, material.texts)
    else:
        raise LabelingError("Nothing to test on. Give test_texts=, or positives= and negatives=.")
    texts = FreshTexts(store, label.feature_id, fresh_documents(store, label), random)
    if label.rule is not None and label.label == label.rule.words():
        return by_rule(texts, label.rule)
    return without_reader(texts) if material.reader is None else by_reader(texts, label, material.reader)


def _measure(items: Items, options: SensitivityOptions) -> dict[str, Any]:
    """The numbers of the test, as plain values; "passed" is None where a class has too few items."""
    yes, no = items.positive, items.negative
    found: dict[str, Any] = {
        "passed": None,
        "n_positive": len(yes),
        "n_negative": len(no),
        "unit": items.unit,
        "source": items.source,
        "removed": items.removed,
        "coverage": items.coverage,
    }
    if items.coverage < MIN_COVERAGE or min(len(yes), len(no)) < max(options.n_min, 1):
        return found | {"n_min": options.n_min}
    strongest = float(max(yes.max(), no.max()))
    threshold = FIRES_FROM * strongest if options.tau is None else options.tau
    fires_yes, fires_no = ((each >= threshold) & (each > 0) for each in (yes, no))
    accuracy = balanced_accuracy(
        int(fires_yes.sum()), int((~fires_yes).sum()), int((~fires_no).sum()), int(fires_no.sum())
    )
    p = permutation_p(yes, no, np.random.default_rng([options.seed, 8]))
    area = auroc(yes, no)
    missed = np.flatnonzero(~fires_yes)[:_EXAMPLES]
    alarms = len(yes) + np.flatnonzero(fires_no)[:_EXAMPLES]
    return found | {
        "passed": holds(area, accuracy, p),
        "auroc": area.value,
        "auroc_interval": list(area.interval),
        "balanced_accuracy": accuracy,
        "sensitivity": float(fires_yes.mean()),
        "specificity": float(1 - fires_no.mean()),
        "p": p,
        "missed": [items.name(int(i)) for i in missed],
        "false_alarms": [items.name(int(i)) for i in alarms],
    }


def holds(area: Auroc, accuracy: float, p: float) -> bool:
    """Whether a label passes: by the lower bound of the area under the curve, not by its value."""
    return bool(area.interval[0] > MIN_AUROC and accuracy >= GOOD and p < MAX_P)


def permutation_p(
    yes: NDArray[np.float64], no: NDArray[np.float64], random: np.random.Generator, draws: int = DRAWS
) -> float:
    """The share of random permutations of the classes that are at least as far apart, these included."""
    return significance.permutation_p(yes, no, seed=random, draws=draws)


def _details(found: Mapping[str, Any], items: Items) -> str:
    """The outcome as a text."""
    left_out = f" {items.removed} texts were left out: the label was made from them." if items.removed else ""
    counts = f"{len(items.positive)} positive and {len(items.negative)} negative {items.unit}s"
    if found["passed"] is None and items.source == NO_READER:
        return (
            "Not tested: the label is in words, and no rule says where it holds. Give reader=, a language "
            f"model that reads it; or positives= and negatives=, texts that have and lack what it says.{left_out}"
        )
    if found["passed"] is None and items.coverage < MIN_COVERAGE:
        return (
            f"Not tested: {items.source}, decided {percent(items.coverage)} of the tokens; "
            f"{percent(MIN_COVERAGE)} are needed. Give a clearer label, or another reader.{left_out}{_causal(found)}"
        )
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
    return causal_text(found["causal"]) if "causal" in found else ""


_MOST_DRAWS = 99_999


def sensitivity_tests(
    model: InterpretableModel,
    sae: SAE,
    labels: Sequence[FeatureLabel],
    test_texts: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    reader: Completer | None = None,
    store: FeatureStore | None = None,
    n_min: int = 8,
    alpha: float = MAX_P,
    causal: bool = False,
    controls: int = CONTROLS,
    seed: int = 0,
) -> list[FeatureLabel]:
    """`sensitivity_test` of many labels, with one pass over the texts and a correction for their number.

    A label passes only if it would alone, and if its p, adjusted after Benjamini and Hochberg for all
    labels that could be tested, is below `alpha` too: of the labels that pass, no more than that share is
    expected to be wrong. Where no permutation came as far as the classes are, and the correction needs a
    smaller p than 999 permutations can give, up to 99,999 are drawn: enough for one true label among 1,000.

    Args:
        labels: those without a label (`status` is not "ok") come back as they are.
        alpha: the share of false discoveries.
        Others as in `sensitivity_test`.

    Returns:
        the labels in their order. `label.sensitivity` has "p_adjusted" and "tested_with", for how many
        labels p is adjusted.

    Raises:
        LabelingError, StoreError, SAEError: as `sensitivity_test`.

    Warns:
        TrainingTexts: as `sensitivity_test`, once for all labels.

    Source: Benjamini and Hochberg 1995, "Controlling the false discovery rate".
    """
    if not 0 < alpha < 1:
        raise LabelingError(f"alpha={alpha}: the share of false discoveries lies between 0 and 1, as 0.01.")
    asked = [i for i, label in enumerate(labels) if label.label is not None]
    for i in asked:
        check(sae, layer, component, labels[i], controls)
    if asked and store is None and test_texts is not None:
        store, test_texts = build_store(model, sae, test_texts), None
    material = _Material(test_texts, store=store, reader=reader)
    options = SensitivityOptions(None, n_min, causal, controls, seed)
    tested = {i: _items(model, sae, labels[i], material, seed) for i in asked}
    _warn_of_training_texts([(labels[i], items) for i, items in tested.items()])
    found = {i: _measure(items, options) for i, items in tested.items()}
    able = [i for i in asked if found[i]["passed"] is not None]
    _adjust([found[i] for i in able], [tested[i] for i in able], alpha, seed)
    result = list(labels)
    for i, items in tested.items():
        result[i] = _outcome(model, sae, labels[i], items, found[i], options)
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

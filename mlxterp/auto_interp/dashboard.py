"""Dashboards: what a store and labels say of features, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.promoted_tokens import neighbours, promotion
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LabelingError
from mlxterp.reports.dashboard import Accuracy, Examples, Excerpt, FeatureEntry, dashboard, write_dashboard
from mlxterp.reports.feature_links import features_in_report
from mlxterp.sae.analysis.interventions import feature_add
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.text import percent

_BEFORE, _AFTER = 20, 11
_TOP, _PARTS, _PER_PART = 10, 4, 4
_BINS = 30
_MOST_UNNAMED = 100
_STRENGTHS, _NEW_TOKENS = (-2.0, 0.0, 1.0, 2.0, 4.0), 24


def save_dashboard(
    path: str | Path,
    model: InterpretableModel,
    sae: SAE,
    store: FeatureStore,
    labels: Sequence[FeatureLabel] = (),
    features: Sequence[int] | None = None,
    *,
    title: str | None = None,
    steer_from: str | None = None,
    report: str | Path | None = None,
) -> Path:
    """Writes one HTML page of features: examples, activations, tokens, scored labels; to search and sort.

    Of each feature: a histogram of its activations, its strongest places and some of each quarter of its
    activations by rank (no two of one row of the store), the tokens it fires at, the tokens whose logits it
    raises and lowers, features of similar direction, its label with held-out scores and sensitivity.

    Args:
        path: an `.html` file; its directory is made.
        store: of this SAE, from `sae.build_store`.
        labels: from `auto_label_features`; a feature without one is shown too.
        features: which; by default those of the labels, or the 100 that fire most if there are none.
        title: of the page.
        steer_from: a prompt whose continuations are computed with each feature added, from −2 to 4 times its
            largest activation, and shown behind a slider. Not for transcoders.
        report: an HTML report that was written with `dashboard=`: the features that it names lead to it.

    Costs no forward, about 5 ms and 10 kB for each feature; with `steer_from` five generations of 24 tokens
    each. A feature's part of the page has the address `page.html#f42`, for links. Returns the path.

    Raises:
        LabelingError: a store of another SAE, or a feature with two labels.
        StoreError: there is no such feature.
        ResultError: there is no such report.
    """
    named = {} if report is None else features_in_report(report, seen_from=path)
    if store.d_sae != sae.d_sae or store.facts.get("sae_digest", sae.digest) != sae.digest:
        raise LabelingError(
            f"{store!r} and an SAE of {sae.d_sae} features at {sae.hook_point}: the store was made with "
            "another SAE. Give the one that build_store was called with."
        )
    by_id = {label.feature_id: label for label in labels}
    if len(by_id) < len(labels):
        raise LabelingError(f"{len(labels)} labels of {len(by_id)} features. Give each feature one label.")
    shown = [int(each) for each in (features if features is not None else by_id or _busiest(store))]
    lens = promotion(model, sae, shown)
    similar = neighbours(sae, shown)
    entries = [
        _entry(
            store,
            feature,
            by_id.get(feature),
            promoted=lens.promoted.get(feature, ()),
            suppressed=lens.suppressed.get(feature, ()),
            neighbours=similar.get(feature, ()),
            report=named.get(feature, ""),
            prompt=steer_from or "",
            steering=() if steer_from is None else _steered(model, sae, store, feature, steer_from),
        )
        for feature in shown
    ]
    about = {
        "model": model.name,
        "SAE": f"{sae.d_sae} features at {sae.hook_point}",
        "corpus": f"{store.n_tokens} tokens of {store.n_documents} documents, {store.n_counted} counted",
    } | {name: value for name, value in store.facts.items() if isinstance(value, (str, int, float))}
    heading = title or f"{len(entries)} features of {model.name} at {sae.hook_point}"
    return write_dashboard(path, dashboard(entries, title=heading, about=about))


def _steered(
    model: InterpretableModel, sae: SAE, store: FeatureStore, feature: int, prompt: str
) -> tuple[tuple[float, str], ...]:
    """What the model goes on with after the prompt, by how much of the feature is added at every position."""
    largest = float(store.max_activation[feature])
    found = []
    for times in _STRENGTHS if largest else (0.0,):
        edits = [feature_add(sae, feature, times * largest)] if times else []
        result = model.generate(prompt, max_new_tokens=_NEW_TOKENS, interventions=edits)
        found.append((times * largest, result.text))
    return tuple(found)


def _busiest(store: FeatureStore) -> list[int]:
    """The features with the largest sum of activations, most first."""
    total = store.counts * store.mean_activation
    order = np.argsort(-total, kind="stable")[:_MOST_UNNAMED]
    found = [int(feature) for feature in order if store.counts[feature]]
    if not found:
        raise LabelingError(f"no feature fires in {store!r}. Build the store on more text.")
    return found


def _entry(store: FeatureStore, feature: int, label: FeatureLabel | None, **weights: Any) -> FeatureEntry:
    places, activations = store.feature(feature)
    largest = float(store.max_activation[feature])
    counts, _ = np.histogram(activations, bins=_BINS, range=(0.0, largest or 1.0))
    return FeatureEntry(
        feature_id=feature,
        density=float(store.density[feature]),
        max_activation=largest,
        mean_activation=float(store.mean_activation[feature]),
        counts=tuple(counts.tolist()) if len(places) else (),
        examples=_examples(store, places, activations),
        **(weights | {"top_tokens": _top_tokens(store, places, activations)} | _labelled(label, len(places))),
    )


def _labelled(label: FeatureLabel | None, n_places: int) -> dict[str, Any]:
    if label is None:
        return {"status": "no label" if n_places else "fires nowhere in this corpus"}
    reason = f": {label.error}" if label.error else ""
    passed = {True: "passed", False: "failed", None: ""}[label.sensitivity_passed]
    facts: list[tuple[str, str]] = [("method", label.method), ("kind", label.kind)]
    if label.confidence_elsewhere is not None:
        facts.append(("confidence on another kind of text", percent(label.confidence_elsewhere)))
    if label.llm_confidence is not None:
        facts.append(("the language model's own confidence", f"{label.llm_confidence:.2f}"))
    return {
        "label": label.label,
        "description": label.description,
        "status": f"{label.status.replace('_', ' ')}{reason}",
        "facts": tuple(facts),
        "confidence": label.confidence if label.label is not None else None,
        "accuracies": tuple(
            Accuracy(name.replace("_", " "), score.balanced_accuracy, *score.interval, score.auroc)
            for name, score in label.scores.items()
            if score.balanced_accuracy is not None and score.interval is not None
        ),
        "sensitivity": passed,
        "sensitivity_details": label.sensitivity_details,
    }


def _top_tokens(
    store: FeatureStore, places: NDArray[np.uint32], activations: NDArray[np.float32], k: int = 10
) -> tuple[tuple[str, float], ...]:
    """Tokens with their share of all of the feature's activation."""
    if not len(places):
        return ()
    total = np.bincount(store.word[places], weights=activations, minlength=len(store.strings))
    best = np.argsort(-total, kind="stable")[:k]
    return tuple((store.strings[i], float(total[i] / total.sum())) for i in best if total[i])


def _examples(
    store: FeatureStore, places: NDArray[np.uint32], activations: NDArray[np.float32]
) -> tuple[Examples, ...]:
    """The strongest places, then some of each quarter by rank; a row of the store is shown once."""
    order = np.argsort(-activations, kind="stable")
    seen: set[int] = set()

    def excerpts(candidates: NDArray[np.int64], most: int) -> tuple[Excerpt, ...]:
        found: list[Excerpt] = []
        for i in candidates:
            row = int(store.row_start[places[i]])
            if len(found) < most and row not in seen:
                seen.add(row)
                found.append(_excerpt(store, places, activations, int(i)))
        return tuple(found)

    groups = [Examples("Strongest", excerpts(order[: 8 * _TOP], _TOP))]
    for part, candidates in enumerate(np.array_split(order[_TOP:], _PARTS)):
        if len(candidates):
            spread = candidates[np.linspace(0, len(candidates) - 1, 8 * _PER_PART).astype(int)]
            top = f"{100 - 25 * part} to {75 - 25 * part} %"
            groups.append(Examples(f"Activations by rank, {top}", excerpts(np.unique(spread), _PER_PART)))
    return tuple(group for group in groups if group.excerpts)


def _excerpt(
    store: FeatureStore, places: NDArray[np.uint32], activations: NDArray[np.float32], i: int
) -> Excerpt:
    span = store.window(int(places[i]), _BEFORE, _AFTER)
    low, high = np.searchsorted(places, [span.start, span.stop])
    values = np.zeros(span.stop - span.start)
    values[places[low:high] - span.start] = activations[low:high]
    place = f"document {int(store.document[places[i]])}, token {int(store.position[places[i]])}"
    return Excerpt(
        store.str_tokens(span.start, span.stop), tuple(values.tolist()), int(places[i]) - span.start, place
    )

"""Where in a corpus features fire most, read from a `FeatureStore`: no model is run, no mlx needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlxterp.errors import SAEError
from mlxterp.measurements import recorder
from mlxterp.results import FeatureExample, FeatureExamplesResult
from mlxterp.sae.feature_store.store import FeatureStore

BEFORE, AFTER = 12, 6


def feature_examples(
    store: FeatureStore,
    features: Sequence[int],
    *,
    per_feature: int = 5,
    before: int = BEFORE,
    after: int = AFTER,
) -> FeatureExamplesResult:
    """The places where each feature fires most, with the text around them.

    Args:
        store: of one pass over a corpus (`build_store`); it serves all features.
        features: their indices.
        per_feature: at most this many places each. They do not overlap, and no two have the same text.
        before, after: tokens shown around the one where the feature fires.

    Returns:
        for each feature its examples, strongest first; none for one that does not fire in the corpus.

    Raises:
        SAEError: per_feature below 1. StoreError: a feature that does not exist.
    """
    if per_feature < 1:
        raise SAEError(f"per_feature={per_feature}: ask for at least one example.")
    chosen = [int(f) for f in features]
    examples = [e for f in chosen for e in _of_feature(store, f, per_feature, before, after)]
    facts = {
        name: store.facts[name] for name in ("model", "sae_digest", "texts_digest") if name in store.facts
    }
    recorder.add_method("feature_examples")
    return FeatureExamplesResult(
        features=tuple(chosen),
        examples=tuple(examples),
        densities=store.density[chosen],
        maxima=store.max_activation[chosen].astype(np.float64),
        n_tokens=store.n_tokens,
        n_documents=store.n_documents,
        forwards=store.forwards,
        hook_point=str(store.facts.get("hook_point", "")),
        measured_on=facts,
    )


def _of_feature(
    store: FeatureStore, feature: int, most: int, before: int, after: int
) -> list[FeatureExample]:
    where, activation = store.feature(feature)
    found: list[FeatureExample] = []
    texts: set[tuple[str, ...]] = set()
    taken: list[slice] = []
    for i in np.argsort(-activation, kind="stable").tolist():
        if len(found) == most:
            break
        token = int(where[i])
        around = store.window(token, before, after)
        tokens = store.str_tokens(around.start, around.stop)
        if tokens in texts or any(span.start <= token < span.stop for span in taken):
            continue
        texts.add(tokens)
        taken.append(around)
        found.append(
            FeatureExample(
                feature=feature,
                activation=float(activation[i]),
                tokens=tokens,
                peak=token - around.start,
                document=int(store.document[token]),
                position=int(store.position[token]),
            )
        )
    return found

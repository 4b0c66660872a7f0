"""What labels are worth on another kind of text than they were tested on: `recalibrate_confidence`.

Kinds of text differ more than a label's own test tells; a few tokens of the kind, for many labels at once,
say how much is lost there (`confidence.kind_of_text`). `sensitivity_test` tests one label on many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxterp.auto_interp.confidence import FourCounts, kind_of_text, on_kind
from mlxterp.auto_interp.evidence.corpus import Corpus, Half
from mlxterp.auto_interp.evidence.token_draw import draw
from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.auto_interp.rules.rules import Rule
from mlxterp.errors import LabelingError
from mlxterp.sae.feature_store.store import FeatureStore

MOST = 20
"""Tokens at which a feature fires that are looked at, and as many at which it does not."""


def recalibrate_confidence(
    labels: Sequence[FeatureLabel], store: FeatureStore, *, most: int = MOST, seed: int = 0
) -> list[FeatureLabel]:
    """The labels with their `confidence_elsewhere` for the kind of text that a store holds.

    Each rule is compared with its feature at up to `most` tokens at which it fires and as many at which it
    does not (half of these near misses, as in the label's own test). What all labels lose there gives the
    expectation for one of them, and its own tokens correct it. docs/performance.md has the calibration.

    Costs no forward; about 2 ms a label.

    Args:
        labels: of one SAE. Those without a label, without a rule or without its score come back as they are.
        store: of texts of the other kind, from `build_store` on the same SAE.
        seed: of the draws.

    Returns:
        the labels in their order, with the store's digest in `provenance["elsewhere"]`.

    Raises:
        LabelingError: no label can be tested there.
        StoreError: the store lacks a label's feature.
    """
    corpus, asked = Corpus(store, seed), []
    for i, label in enumerate(labels):
        if label.label is not None and label.rule is not None and "rule" in label.scores:
            score = label.scores["rule"]
            here = (
                score.true_positives,
                score.false_negatives,
                score.true_negatives,
                score.false_positives,
            )
            asked.append((i, here, _counts(corpus, label.feature_id, label.rule, most)))
    if not asked:
        raise LabelingError(
            f"None of {len(labels)} labels has a rule and its score. Give labels of `auto_label_features`; a "
            "label in words is tested on other texts by `sensitivity_test`."
        )
    kind = kind_of_text([here for _, here, _ in asked], [there for _, _, there in asked])
    found = list(labels)
    for i, here, there in asked:
        label = labels[i]
        facts = {"store_digest": store.digest, "tokens": sum(there), "labels": kind.labels}
        found[i] = replace(
            label,
            confidence_elsewhere=on_kind(here, there, kind),
            provenance={**label.provenance, "elsewhere": facts},
        )
    return found


def _counts(corpus: Corpus, feature_id: int, rule: Rule, most: int) -> FourCounts:
    """How often the rule and the feature agree at tokens of both halves of a corpus."""
    hits = misses = rejections = alarms = 0
    halves: tuple[tuple[Half, int], ...] = (("train", most - most // 2), ("test", most // 2))
    for half, size in halves:
        drawn = draw(corpus, feature_id, half, most=size)
        holds = rule.holds(corpus.view, drawn.index)
        yes, no = holds[drawn.fires], holds[~drawn.fires]
        hits, misses = hits + int(yes.sum()), misses + int((~yes).sum())
        rejections, alarms = rejections + int((~no).sum()), alarms + int(no.sum())
    return hits, misses, rejections, alarms

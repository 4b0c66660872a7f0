"""Evidence for a label: windows of text where a feature fires, and where it verifiably does not.

A window that nearly equals another is left out, also across the halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.corpus import Corpus, Half
from mlxterp.auto_interp.evidence.token_view import Indices
from mlxterp.errors import LabelingError
from mlxterp.sae.feature_store.store import FeatureStore

Weighted = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document with a feature's activation at each.

    Attributes:
        document: its number in the store.
        start: the index of the first token in its document.
        tokens: their texts, which join to the text.
        activations: one per token; all 0 in a negative window.
        peak: which of the tokens the window is about: where a feature fires most strongly.
        quantile: of a positive window, the tenth of the feature's activations it is of, 9 the strongest.
    """

    document: int
    start: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    quantile: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def activation_value(self) -> float:
        """The activation at the peak."""
        return self.activations[self.peak]

    @property
    def token_position(self) -> int:
        """The peak's index in its document."""
        return self.start + self.peak


@dataclass(frozen=True)
class FeatureEvidence:
    """Windows for the labeler (train) and for the scorers of its label (test).

    Attributes:
        feature_id: the feature.
        status: "dead" fires nowhere; "too_few_examples" fires, but has too few distinct windows in a half.
        train_positives, train_negatives: for the labeler. Positives: strongest first, then others from low to
            high.
        test_positives, test_negatives: for the scorers; from other documents.
        top_tokens: where it fires in the training half, with each token's share of its activation there.
        next_tokens: the same for the tokens that follow.
        promoted, suppressed: tokens whose logits the feature raises and lowers most, if they were given.
        density: the share of counted tokens at which it fires.
        max_activation, mean_activation: the mean is over the tokens where it fires.
    """

    feature_id: int
    status: Literal["ok", "dead", "too_few_examples"]
    train_positives: tuple[Window, ...] = ()
    train_negatives: tuple[Window, ...] = ()
    test_positives: tuple[Window, ...] = ()
    test_negatives: tuple[Window, ...] = ()
    top_tokens: Weighted = ()
    next_tokens: Weighted = ()
    promoted: Weighted = ()
    suppressed: Weighted = ()
    density: float = 0.0
    max_activation: float = 0.0
    mean_activation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How many windows, and how long.

    Attributes:
        length: tokens of a window; the peak stands at three quarters, unless the row begins or ends there.
        train_top, train_spread: of the strongest, and of five equal parts of the others.
        test: over ten equal parts of all activations.
        train_negatives, test_negatives: half of them, if there are, where the feature's own tokens occur and
            it does not fire, or where features of similar direction fire and it does not; the rest anywhere.
        min_examples: with fewer distinct windows in a half, a feature gets no label.
    """

    length: int = 32
    train_top: int = 10
    train_spread: int = 10
    test: int = 50
    train_negatives: int = 20
    test_negatives: int = 50
    min_examples: int = 8


def gather(
    corpus: Corpus,
    feature_ids: Iterable[int],
    *,
    sampling: Sampling | None = None,
    neighbours: Mapping[int, Sequence[int]] | None = None,
    promoted: Mapping[int, Weighted] | None = None,
    suppressed: Mapping[int, Weighted] | None = None,
) -> Iterator[FeatureEvidence]:
    """The evidence of each feature, one after the other; no model is run.

    Args:
        corpus: the store, split.
        feature_ids: of which features.
        sampling: how many windows of which length.
        neighbours: features of similar direction, for hard negatives.
        promoted, suppressed: what each feature does to the logits, passed on to the evidence.

    Raises:
        StoreError: there is no such feature.
        LabelingError: a store without any counted token.
    """
    sampling = sampling or Sampling()
    if not corpus.store.n_counted:
        raise LabelingError(
            f"Evidence from {corpus.store!r}, none of whose tokens may be evidence (the first of a row never "
            "is). Give longer texts."
        )
    for feature_id in feature_ids:
        shown = shown_evidence(corpus, feature_id, sampling, promoted, suppressed)
        enough = shown.status == "ok"
        yield _with_test(corpus, shown, sampling, (neighbours or {}).get(feature_id, ())) if enough else shown


def shown_evidence(
    corpus: Corpus,
    feature_id: int,
    sampling: Sampling,
    promoted: Mapping[int, Weighted] | None = None,
    suppressed: Mapping[int, Weighted] | None = None,
) -> FeatureEvidence:
    """The evidence that a label carries: without negatives and test windows. Costs about 2 ms."""
    store, feature_id = corpus.store, int(feature_id)
    raises, lowers = ((of or {}).get(feature_id, ()) for of in (promoted, suppressed))
    if not len(store.feature(feature_id).token_index):
        return FeatureEvidence(feature_id, "dead", promoted=raises, suppressed=lowers)
    train, test = positive_peaks(corpus, feature_id, sampling)
    here, after = token_shares(corpus, feature_id)
    return FeatureEvidence(
        feature_id,
        "ok" if min(len(train), len(test)) >= sampling.min_examples else "too_few_examples",
        train_positives=_positives(corpus, feature_id, train, sampling),
        top_tokens=here,
        next_tokens=after,
        density=float(store.density[feature_id]),
        max_activation=float(store.max_activation[feature_id]),
        mean_activation=float(store.mean_activation[feature_id]),
        promoted=raises,
        suppressed=lowers,
    )


def _with_test(
    corpus: Corpus, evidence: FeatureEvidence, sampling: Sampling, neighbours: Sequence[int]
) -> FeatureEvidence:
    feature_id = evidence.feature_id
    _, test = positive_peaks(corpus, feature_id, sampling)
    full = replace(
        evidence,
        train_negatives=_negatives(
            corpus, feature_id, "train", sampling.train_negatives, sampling, neighbours
        ),
        test_positives=_positives(corpus, feature_id, test, sampling),
        test_negatives=_negatives(corpus, feature_id, "test", sampling.test_negatives, sampling, neighbours),
    )
    seen = {w.document for w in (*full.train_positives, *full.train_negatives)}
    held_out = {w.document for w in (*full.test_positives, *full.test_negatives)}
    assert not seen & held_out, f"documents {seen & held_out} are in both halves of feature {feature_id}"
    return full


def positive_peaks(corpus: Corpus, feature_id: int, sampling: Sampling) -> tuple[Indices, Indices]:
    """Token indices of the training and of the test windows, without near-identical ones.

    Of tokens that lie closer than a window, only the strongest is a peak.
    """
    store, fires = corpus.store, corpus.store.feature(feature_id)
    index = fires.token_index.astype(np.int64)
    place = store.row_start[index] + (index - store.row_start[index]) // sampling.length * sampling.length
    order = np.lexsort((index, -fires.activation, place))
    peaks = order[np.flatnonzero(np.diff(place[order], prepend=-1))]
    peaks = peaks[np.lexsort((peaks, -fires.activation[peaks]))]  # strongest first
    _, first = np.unique(corpus.surroundings[index[peaks]], return_index=True)
    peaks = peaks[np.sort(first)]
    inside = corpus.token_in_train[index[peaks]]
    train, test = index[peaks[inside]], index[peaks[~inside]]
    random = corpus.random(feature_id, 0)
    spread = _from_each(train[sampling.train_top :], 5, sampling.train_spread, random)
    train = np.concatenate([train[: sampling.train_top], spread])
    return train, _from_each(test, 10, sampling.test, random)


def _from_each(peaks: Indices, parts: int, n: int, random: np.random.Generator) -> Indices:
    """`n` of these, as evenly as possible from equal parts, weakest part first, each in its order."""
    if len(peaks) <= n:
        return peaks[::-1]
    chosen = []
    for i, part in enumerate(np.array_split(peaks, parts)[::-1]):
        own = (n * (i + 1)) // parts - (n * i) // parts
        chosen.append(np.sort(random.choice(len(part), size=min(own, len(part)), replace=False))[::-1])
        chosen[-1] = part[chosen[-1]]
    return np.concatenate(chosen)


def _positives(corpus: Corpus, feature_id: int, peaks: Indices, sampling: Sampling) -> tuple[Window, ...]:
    activations = corpus.store.feature(feature_id).activation
    edges = np.quantile(activations, np.arange(1, 10) / 10).astype(np.float64)
    return _windows(corpus, feature_id, peaks, sampling, edges)


def _windows(
    corpus: Corpus, feature_id: int, at: Indices, sampling: Sampling, edges: NDArray[np.float64] | None
) -> tuple[Window, ...]:
    """The windows around these tokens, with the feature's activations."""
    store, fires = corpus.store, corpus.store.feature(feature_id)
    starts, stops = _spans(store, at, sampling.length)
    places = fires.token_index.astype(np.int64)
    lows, highs = np.searchsorted(places, starts), np.searchsorted(places, stops)
    windows = []
    for peak, start, stop, low, high in zip(
        at.tolist(), starts.tolist(), stops.tolist(), lows.tolist(), highs.tolist(), strict=True
    ):
        acts = np.zeros(stop - start, dtype=np.float64)
        acts[places[low:high] - start] = fires.activation[low:high]
        strength = acts[peak - start]
        windows.append(
            Window(
                document=int(store.document[peak]),
                start=int(store.position[start]),
                tokens=store.str_tokens(start, stop),
                activations=tuple(acts.tolist()),
                peak=peak - start,
                quantile=None if edges is None else int((edges <= strength).sum()),
            )
        )
    return tuple(windows)


def _spans(store: FeatureStore, at: Indices, length: int) -> tuple[Indices, Indices]:
    """`length` tokens of each row, the peak at three quarters where the row allows."""
    begin, end = store.row_start[at], store.row_stop[at]
    starts = np.maximum(begin, np.minimum(at - (3 * length) // 4, end - length))
    return starts, np.minimum(starts + length, end)


def _negatives(
    corpus: Corpus,
    feature_id: int,
    half: Half,
    n: int,
    sampling: Sampling,
    neighbours: Sequence[int],
) -> tuple[Window, ...]:
    """Windows of a half in which the feature fires nowhere, half of them hard; no near-identical ones."""
    random = corpus.random(feature_id, 1 if half == "train" else 2)
    quarter = n // 4
    hard = silent(corpus, feature_id, random.permutation(_same_token(corpus, feature_id, half)), sampling)
    near = [corpus.store.feature(other).token_index.astype(np.int64) for other in neighbours]
    similar = np.concatenate([np.zeros(0, np.int64), *near])
    similar = similar[corpus.token_in_train[similar] == (half == "train")]
    similar = silent(corpus, feature_id, random.permutation(similar)[: 8 * n], sampling)
    counted = corpus.counted(half)
    anywhere = counted[random.integers(0, len(counted), size=8 * n)] if len(counted) else counted
    anywhere = silent(corpus, feature_id, anywhere, sampling)
    of_neighbours = similar[:quarter]
    of_tokens = hard[: n // 2 - len(of_neighbours)]
    every = np.concatenate([of_tokens, of_neighbours, anywhere])
    _, first = np.unique(corpus.surroundings[every], return_index=True)
    every = every[np.sort(first)][:n]
    return _windows(corpus, feature_id, random.permutation(every), sampling, None)


def _same_token(corpus: Corpus, feature_id: int, half: Half, most: int = 400) -> Indices:
    """Counted tokens of a half that are tokens at which the feature fires, whether or not it fires there."""
    store = corpus.store
    words, counts = np.unique(store.word[store.feature(feature_id).token_index], return_counts=True)
    own, found = corpus.by_word(half), []
    for word in words[np.argsort(-counts, kind="stable")][:16]:
        places = own.index[own.begins[word] : own.begins[word + 1]]
        found.append(places[:: max(1, len(places) // most)])
    return np.concatenate([np.zeros(0, np.int64), *found])


def silent(corpus: Corpus, feature_id: int, at: Indices, sampling: Sampling) -> Indices:
    """Those of these tokens in whose window the feature fires nowhere."""
    store = corpus.store
    start, stop = _spans(store, at, sampling.length)
    fires = store.feature(feature_id).token_index.astype(np.int64)
    quiet: NDArray[np.bool_] = np.searchsorted(fires, start) == np.searchsorted(fires, stop)
    return at[quiet]


def token_shares(corpus: Corpus, feature_id: int, k: int = 10) -> tuple[Weighted, Weighted]:
    """The k tokens that carry most of a feature's activation in the training half, and the k that follow."""
    store, fires = corpus.store, corpus.store.feature(feature_id)
    inside = corpus.token_in_train[fires.token_index]
    index, weight = fires.token_index[inside].astype(np.int64), fires.activation[inside].astype(np.float64)
    if not len(index):
        return (), ()
    follows = index + 1 < store.row_stop[index]
    here = _shares(store, index, weight / weight.sum(), k)
    return here, _shares(store, index[follows] + 1, weight[follows] / weight.sum(), k)


def _shares(store: FeatureStore, index: Indices, weight: NDArray[np.float64], k: int) -> Weighted:
    words, number = np.unique(store.word[index], return_inverse=True)
    total = np.bincount(number, weights=weight, minlength=len(words))
    order = np.argsort(-total, kind="stable")[:k]
    return tuple((store.strings[int(words[i])], float(total[i])) for i in order)

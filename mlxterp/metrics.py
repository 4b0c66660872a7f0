"""Metrics: from the logits at the answer position to one number per example.

There are two families. A *behaviour* (`logit_diff`, `logit`, `prob`, `log_prob`) is a property of one row of
logits; higher means more of it. A *distance* (`l2`, `cosine`, `kl`) is measured from the clean run's row; 0
means identical to the clean run, higher means further away.

Everything is computed in float64 from float32 logits, one row at a time. No metric changes when a constant is
added to a row of logits, except `logit`, which is meant for comparison with an attribution only.

`recovered` turns any of them into a recovered effect. See `mlxterp.causal` for running a model, choosing the
answer position and averages over a dataset.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.errors import MetricError

Floats: TypeAlias = NDArray[np.float64]
Tokens: TypeAlias = NDArray[np.int64]
MetricFunction: TypeAlias = Callable[..., ArrayLike]
"""A custom metric: takes float32 logits `[n, d_vocab]` as a numpy array, returns `n` numbers.

One that numpy arrays do not suit is called with an mlx array, which is what gradient methods always give it.

With a second positional argument it also gets the `Targets` of these n examples: the answer and foil of each.
"""


@dataclass(frozen=True)
class Targets:
    """What a metric compares with, per example: answer and foil token ids, and the clean run's logits."""

    answers: Tokens | None = None
    foils: Tokens | None = None
    clean_logits: NDArray[np.float32] | None = None

    def take(self, examples: ArrayLike) -> Targets:
        """The targets of these examples, in this order (a sweep has many rows per example)."""
        index = np.asarray(examples, dtype=np.int64)
        return Targets(
            answers=None if self.answers is None else self.answers[index],
            foils=None if self.foils is None else self.foils[index],
            clean_logits=None if self.clean_logits is None else self.clean_logits[index],
        )


@dataclass(frozen=True)
class Metric:
    """A named metric and what it needs.

    Attributes:
        name: as the caller spells it; for a callable, the function's name.
        direction: what a higher value means, as a sentence for results and reports.
        needs: which of the targets it reads.
        compute: logits `[n, d_vocab]` and targets of n examples to n numbers.
        tolerance: two values closer than this are the same value: below it there is no gap to recover.
        absent: its value when the behaviour is absent, if that is defined: 0 for `logit_diff`.
        targets_only: whether it reads the answer's and the foil's logits only, so that the others need not be
            computed.
        function: the caller's function that it wraps, if any; gradients call it with mlx arrays.
    """

    name: str
    direction: str
    needs: frozenset[str]
    compute: Callable[[NDArray[np.float32], Targets], Floats]
    tolerance: float
    absent: float | None = None
    targets_only: bool = False
    function: MetricFunction | None = None

    def __call__(self, logits: ArrayLike, targets: Targets) -> Floats:
        """The metric of each row, float64 `[n]`."""
        rows = np.asarray(logits, dtype=np.float32)
        if rows.ndim != 2:
            raise MetricError(
                f"{self.name}: logits have shape {rows.shape}; a metric takes [n, d_vocab], one row per "
                "example, read at the answer position."
            )
        values = np.asarray(self.compute(rows, targets), dtype=np.float64)
        if values.shape != (len(rows),):
            raise MetricError(
                f"{self.name}: got shape {values.shape} for {len(rows)} rows of logits. A metric returns "
                f"one number per row: shape ({len(rows)},)."
            )
        return values


def log_softmax(logits: ArrayLike) -> Floats:
    """Log-probabilities along the last axis, in float64."""
    x = np.asarray(logits, dtype=np.float64)
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def logit(logits: ArrayLike, answer: ArrayLike) -> Floats:
    """logit[answer]. Logits are only defined up to a constant per row: prefer `log_prob` or `logit_diff`."""
    rows, answers = np.asarray(logits), np.asarray(answer, dtype=np.int64)
    return np.asarray(rows[np.arange(len(rows)), answers], dtype=np.float64)


def logit_diff(logits: ArrayLike, answer: ArrayLike, foil: ArrayLike) -> Floats:
    """logit[answer] − logit[foil] (Wang et al. 2022; the main metric of Zhang & Nanda 2023)."""
    return np.asarray(logit(logits, answer) - logit(logits, foil))


def log_prob(logits: ArrayLike, answer: ArrayLike) -> Floats:
    """log softmax(logits)[answer], in nats; shows what pushes the answer down, which `prob` hides."""
    rows, answers = np.asarray(logits), np.asarray(answer, dtype=np.int64)
    return np.array([log_softmax(row)[a] for row, a in zip(rows, answers, strict=True)], dtype=np.float64)


def prob(logits: ArrayLike, answer: ArrayLike) -> Floats:
    """softmax(logits)[answer], between 0 and 1."""
    return np.exp(log_prob(logits, answer))


def rank(logits: ArrayLike, answer: ArrayLike) -> NDArray[np.int64]:
    """The answer's place among all tokens: 1 = the model's first choice; tied tokens share the better
    place."""
    rows, answers = np.asarray(logits), np.asarray(answer, dtype=np.int64)
    own = rows[np.arange(len(rows)), answers]
    return np.asarray((rows > own[:, None]).sum(axis=-1) + 1, dtype=np.int64)


def kl(logits: ArrayLike, reference: ArrayLike) -> Floats:
    """KL(P_ref ‖ P) = Σ_v P_ref(v) (log P_ref(v) − log P(v)), in nats, summed over the vocabulary.

    0 = the same distribution; never negative. The clean run is the reference (Conmy et al. 2023).
    """

    def one(row: Floats, ref: Floats) -> float:
        log_p, log_q = log_softmax(ref), log_softmax(row)
        return float(np.sum(np.exp(log_p) * (log_p - log_q)))

    return _compute_by_row(one, logits, reference)


def l2(logits: ArrayLike, reference: ArrayLike) -> Floats:
    """Euclidean distance of mean-centred logits: the smallest over all constants added to a row."""

    def one(row: Floats, ref: Floats) -> float:
        difference = row - ref
        return float(np.linalg.norm(difference - difference.mean()))

    return _compute_by_row(one, logits, reference)


def cosine(logits: ArrayLike, reference: ArrayLike) -> Floats:
    """1 − cos of the angle between mean-centred logits: 0 = same direction, 1 = orthogonal, 2 = opposite."""

    def one(row: Floats, ref: Floats) -> float:
        a, b = row - row.mean(), ref - ref.mean()
        length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
        if length_a == 0.0 or length_b == 0.0:
            raise MetricError(
                "cosine: a row of logits is constant over the vocabulary, so it has no direction. Use 'kl' "
                "or 'l2'."
            )
        # Half the squared chord equals 1 − cos, and is exactly 0 for equal rows where 1 − a·b is not.
        chord = a / length_a - b / length_b
        return float(0.5 * np.dot(chord, chord))

    return _compute_by_row(one, logits, reference)


def recovered(patched: ArrayLike, clean: ArrayLike, corrupted: ArrayLike) -> Floats:
    """(patched − corrupted) / (clean − corrupted): 0 = as the corrupted run, 1 = fully restored.

    Where clean and corrupted are equal the result is NaN: nothing could have been recovered.
    """
    p, c, x = (np.asarray(v, dtype=np.float64) for v in (patched, clean, corrupted))
    gap = np.broadcast_to(c - x, np.broadcast_shapes(p.shape, c.shape, x.shape))
    return np.asarray(np.divide(p - x, gap, out=np.full(gap.shape, np.nan), where=gap != 0))


def resolve(metric: str | MetricFunction | Metric | None, *, answer: bool, foil: bool) -> Metric:
    """The metric of this name, or a metric made of a callable.

    Args:
        metric: a name, a callable `logits [n, d_vocab] -> n numbers` or `(logits, targets) -> n numbers`, or
            None for the default: `logit_diff` when both answer and foil are given, else `l2`.
        answer, foil: whether the caller has them.

    Raises:
        MetricError: an unknown name (listing the known ones), or one whose answer or foil is missing.
    """
    if metric is None:
        metric = "logit_diff" if answer and foil else "l2"
    if isinstance(metric, Metric):
        chosen = metric
    elif isinstance(metric, str):
        if metric not in METRICS:
            raise MetricError(
                f"unknown metric {metric!r}. Known: {', '.join(METRICS)}; or pass a callable on logits."
            )
        chosen = METRICS[metric]
    elif callable(metric):
        chosen = from_callable(metric)
    else:
        raise MetricError(
            f"metric is {metric!r}, a {type(metric).__name__}. Pass one of {', '.join(METRICS)}, or a "
            "callable that takes logits [n, d_vocab] and returns n numbers."
        )
    given = {name for name, present in (("answer", answer), ("foil", foil)) if present}
    missing = sorted((chosen.needs & {"answer", "foil"}) - given)
    if missing:
        instead = "no foil: log_prob, prob" if "answer" in given else "neither: l2, kl, cosine"
        raise MetricError(
            f"metric {chosen.name!r} needs {' and '.join(missing)}, which {_verb(missing)} not given. Pass "
            f"{', '.join(f'{m}=' for m in missing)} (a text of one token, or a token id), or use a metric "
            f"that needs {instead}."
        )
    return chosen


def from_callable(function: MetricFunction, *, name: str | None = None) -> Metric:
    """A metric from a function that takes float32 logits `[n, d_vocab]`, and their `Targets` if it has two
    arguments, and returns n numbers."""
    own_name = name or str(getattr(function, "__name__", type(function).__name__))
    return Metric(
        name=own_name,
        direction=f"as {own_name} defines it",
        needs=frozenset(),
        compute=lambda logits, targets: _called(bind_targets(function, targets), logits, own_name),
        tolerance=1e-6,
        function=function,
    )


def _called(function: Callable[[Any], Any], logits: NDArray[np.float32], name: str) -> Floats:
    """A custom function of numpy logits; one that takes no numpy arrays is called with an mlx array."""
    try:
        return np.asarray(function(logits), dtype=np.float64)
    except (TypeError, ValueError, AttributeError) as problem:
        try:
            return np.asarray(function(mx.array(logits)), dtype=np.float64)
        except (TypeError, ValueError, AttributeError):
            raise MetricError(
                f"{name}: called with float32 logits of shape {logits.shape} as a numpy array it raises "
                f"{type(problem).__name__}: {problem}; nor does it take them as an mlx array. A metric takes "
                "logits [n, d_vocab] and returns n numbers."
            ) from problem


def bind_targets(function: MetricFunction, targets: Targets) -> Callable[[Any], Any]:
    """A custom function as a function of logits alone: its targets, if it takes any, are bound."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # compiled functions without a signature
        return function
    needed = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, _EITHER)]
    return (lambda logits: function(logits, targets)) if len(needed) > 1 else function


def _verb(names: Sequence[str]) -> Literal["was", "were"]:
    return "was" if len(names) == 1 else "were"


def _compute_by_row(
    one: Callable[[Floats, Floats], float], logits: ArrayLike, reference: ArrayLike
) -> Floats:
    # One row at a time: a float64 copy of every row of a sweep at once would take gigabytes.
    rows, references = np.asarray(logits), np.asarray(reference)
    if rows.shape != references.shape:
        raise MetricError(
            f"logits have shape {rows.shape}, the reference {references.shape}: give one reference per row."
        )
    pairs = zip(rows, references, strict=True)
    return np.array([one(r.astype(np.float64), s.astype(np.float64)) for r, s in pairs], dtype=np.float64)


def _require_answers(targets: Targets) -> Tokens:
    if targets.answers is None:
        raise MetricError("this metric reads the answer's token id, and the targets hold no answers.")
    return targets.answers


def _require_foils(targets: Targets) -> Tokens:
    if targets.foils is None:
        raise MetricError("this metric reads the foil's token id, and the targets hold no foils.")
    return targets.foils


def _require_clean_logits(targets: Targets) -> NDArray[np.float32]:
    if targets.clean_logits is None:
        raise MetricError(
            "this metric is a distance from the clean run, and the targets hold no clean logits."
        )
    return targets.clean_logits


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD
_MORE_LOGIT = "higher = more logit for the answer"
_LIKELIER = "higher = the answer is more likely"
_FURTHER = "higher = further from the clean run"
_ANSWER, _BOTH, _REFERENCE = frozenset({"answer"}), frozenset({"answer", "foil"}), frozenset({"clean_logits"})

# A metric that gradient methods are to take as well needs its derivative in `causal/gradients/backward.py`.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "logit_diff",
            "higher = the answer is preferred over the foil",
            _BOTH,
            lambda x, t: logit_diff(x, _require_answers(t), _require_foils(t)),
            1e-3,
            absent=0.0,
            targets_only=True,
        ),
        Metric("log_prob", _LIKELIER, _ANSWER, lambda x, t: log_prob(x, _require_answers(t)), 1e-3),
        Metric("prob", _LIKELIER, _ANSWER, lambda x, t: prob(x, _require_answers(t)), 1e-6, absent=0.0),
        Metric(
            "logit", _MORE_LOGIT, _ANSWER, lambda x, t: logit(x, _require_answers(t)), 1e-3, targets_only=True
        ),
        Metric("kl", _FURTHER, _REFERENCE, lambda x, t: kl(x, _require_clean_logits(t)), 1e-7),
        Metric("l2", _FURTHER, _REFERENCE, lambda x, t: l2(x, _require_clean_logits(t)), 1e-3),
        Metric("cosine", _FURTHER, _REFERENCE, lambda x, t: cosine(x, _require_clean_logits(t)), 1e-7),
    )
}
"""The named metrics, in the order error messages list them."""

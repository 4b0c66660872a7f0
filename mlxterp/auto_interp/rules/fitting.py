"""The offline labeler, which needs no language model: it fits an executable rule to a feature, tests it on
held-out text, and writes the label from it.

Simple rules come from `candidates.py`; here they are chosen and combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Sampling, Weighted, shown_evidence
from mlxterp.auto_interp.evidence.token_draw import draw
from mlxterp.auto_interp.evidence.token_view import Bools
from mlxterp.auto_interp.label import (
    Abstention,
    FeatureLabel,
    Kind,
    LabelingFailure,
    Proposal,
    Score,
    Status,
    with_scores,
)
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.candidates import Background, simple_rules, topics
from mlxterp.auto_interp.rules.phrases import quoted
from mlxterp.auto_interp.rules.rules import (
    AllOf,
    AnyOf,
    Position,
    Rule,
    TokenIn,
    Topic,
    is_named,
)
from mlxterp.auto_interp.scores import balanced_accuracy, score_from_counts
from mlxterp.results.views import percent
from mlxterp.sae.executors import results_in_order, shares_memory
from mlxterp.sae.feature_store.store import FeatureStore, load_store

WEAK = 0.6
"""A rule whose balanced accuracy may be below this is no label."""

_MOST_DRAWN = 300
_MOST_TESTED = 500
_STARTS = 6  # simple rules that combinations begin with
_CONDITIONS = 3
_WORTH = 0.01  # balanced accuracy that another condition must add
_PRICE_OF_TOKEN = 0.0005  # balanced accuracy that each token of a set must be worth


@dataclass(frozen=True)
class Fitted:
    """The best rule found for a feature, and its balanced accuracy on the tokens it was fitted to."""

    rule: Rule
    balanced_accuracy: float


@dataclass(frozen=True, eq=False)
class OfflineLabeler:
    """Labels a feature by the executable rule of at most three conditions that fits its training half best.

    Conditions are of the token (which one, its ending, its kind), of the tokens around it, of the position,
    and of the document's words; each costs a little, so of equal rules the shorter is taken. Costs no
    forward, about 2 ms a feature.

    Args:
        corpus: the store, split. The evidence given to `propose` names the feature; the rule is fitted to all
            of its training half, not only to the windows shown.
    """

    corpus: Corpus
    name: str = "offline"

    @cached_property
    def background(self) -> Background:
        return Background(self.corpus)

    async def propose(self, evidence: FeatureEvidence) -> Proposal | Abstention | LabelingFailure:
        """The rule as a label, or an abstention where no rule is better than a weak guess."""
        return self.proposal(evidence)

    def proposal(self, evidence: FeatureEvidence) -> Proposal | Abstention:
        """`propose` for callers without an event loop."""
        fitted = fit(self.background, evidence.feature_id)
        if fitted is None or fitted.balanced_accuracy < WEAK:
            found = 0.5 if fitted is None else fitted.balanced_accuracy
            return Abstention(
                f"no rule tells where it fires: the best has a balanced accuracy of {found:.2f} on the texts "
                "it was fitted to"
            )
        return Proposal(
            label=fitted.rule.words(),
            description=description(fitted.rule, evidence),
            kind=kind_of(fitted.rule),
            rule=fitted.rule,
        )


def fit(background: Background, feature_id: int) -> Fitted | None:
    """The best rule for a feature on the training half; None if it never fires there."""
    drawn = draw(background.corpus, feature_id, "train", most=_MOST_DRAWN, anywhere=_MOST_DRAWN)
    if not drawn.fires.any() or drawn.fires.all():
        return None
    worth = drawn.weights
    found = dict(simple_rules(background, feature_id, drawn))
    best = _search(found, worth)
    if best is None or best.balanced_accuracy < 0.9:
        found |= {rule: rule.holds(background.corpus.view, drawn.index) for rule in topics(background, drawn)}
        best = _search(found, worth)
    return best


def _search(found: Mapping[Rule, Bools], worth: NDArray[np.float64]) -> Fitted | None:
    """Greedy from several simple rules: each step adds the best conjunction or disjunction with another
    one."""
    if not found:
        return None
    candidates = _Candidates(list(found), np.stack(list(found.values())), worth)
    values = np.round(0.5 + candidates.held @ worth, 9)  # so that equal rules have equal values
    starts = np.argsort(-(values - candidates.prices), kind="stable")[:_STARTS]
    best: tuple[float, Fitted] | None = None
    for i in starts:
        grown = candidates.grow(int(i), float(values[i]))
        if best is None or grown[0] > best[0] + 1e-12:
            best = grown
    return None if best is None else best[1]


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Simple rules to combine.

    Attributes:
        held: [rules, tokens] where each holds.
        worth: [tokens] what each token adds to the balanced accuracy of a rule that holds there.
    """

    rules: Sequence[Rule]
    held: Bools
    worth: NDArray[np.float64]

    @cached_property
    def prices(self) -> NDArray[np.float64]:
        return np.array([_PRICE_OF_TOKEN * (rule.size - 1) for rule in self.rules])

    def grow(self, start: int, value: float) -> tuple[float, Fitted]:
        """The best rule that begins with this one, and its balanced accuracy less the price of its parts."""
        rule, holds, price = self.rules[start], self.held[start], float(self.prices[start])
        for _ in range(_CONDITIONS - 1):
            # The values of "and" and "or" with every other rule at once; |a or b| = |a| + |b| - |a and b|.
            both = 0.5 + (self.held & holds) @ self.worth
            either = value + (0.5 + self.held @ self.worth) - both
            gains = np.concatenate([both, either]) - np.tile(self.prices, 2) - value - _WORTH
            best = int(gains.argmax())
            if gains[best] <= 0:
                break
            i = best % len(self.rules)
            if best == i:
                rule = _conjunction(rule, self.rules[i])
                holds, value = holds & self.held[i], float(both[i])
            else:
                rule = _disjunction(rule, self.rules[i])
                holds, value = holds | self.held[i], float(either[i])
            price += float(self.prices[i]) + _WORTH
        return value - price, Fitted(rule, value)


def _conjunction(rule: Rule, other: Rule) -> Rule:
    return AllOf((*rule.rules, other)) if isinstance(rule, AllOf) else AllOf((rule, other))


def _disjunction(rule: Rule, other: Rule) -> Rule:
    return AnyOf((*rule.rules, other)) if isinstance(rule, AnyOf) else AnyOf((rule, other))


def kind_of(rule: Rule) -> Kind:
    """The kind of feature that a rule describes."""
    if isinstance(rule, AnyOf):
        return kind_of(rule.rules[0])
    if isinstance(rule, AllOf):
        kinds = {kind_of(each) for each in rule.rules}
        order: tuple[Kind, ...] = ("position", "topic", "context", "output", "affix", "token")
        return next((kind for kind in order if kind in kinds), "unclear")
    if isinstance(rule, Position):
        return "position"
    if isinstance(rule, Topic):
        return "topic"
    if rule.offset:
        return "context" if rule.offset < 0 else "output"
    return "token" if isinstance(rule.atom, TokenIn) else "affix"


def description(rule: Rule, evidence: FeatureEvidence) -> str:
    """A label's longer form: the rule, the feature's density, its tokens, what it does to the logits."""
    parts = [f"Fires where this holds: {rule.words(full=True)}."]
    parts.append(f"Active at {100 * evidence.density:.2g} % of tokens.")
    for name, tokens in (
        ("Mostly on", evidence.top_tokens),
        ("Followed by", evidence.next_tokens),
    ):
        if tokens:
            parts.append(f"{name} {_listed(tokens)}.")
    for name, tokens in (
        ("Raises the logits of", evidence.promoted),
        ("Lowers those of", evidence.suppressed),
    ):
        if tokens:
            parts.append(f"{name} {', '.join(quoted(token) for token, _ in tokens[:5])}.")
    return " ".join(parts)


def _listed(tokens: Weighted) -> str:
    return ", ".join(f"{quoted(token)} ({percent(share)})" for token, share in tokens[:4])


def score_rule(
    corpus: Corpus, feature_id: int, rule: Rule, *, decoys: Sequence[Rule] = (), most: int = _MOST_TESTED
) -> dict[str, Score]:
    """How well a rule tells where a feature fires, on tokens of held-out documents.

    Args:
        corpus: the store, split; only its test half is used.
        feature_id: the feature.
        rule: the claim of its label.
        decoys: other features' rules, for comparison.
        most: tokens at which it fires; there are as many at which it does not (`token_draw.draw`).

    Returns:
        "rule", and with decoys "random_label": that of the first one, and in its details the rank of the rule
        among all of them, 1 the best.
    """
    drawn = draw(corpus, feature_id, "test", most=most)
    tenth = _tenths(drawn.activation[drawn.fires])

    def counted(each: Rule) -> tuple[Bools, tuple[int, int, int, int]]:
        holds = each.holds(corpus.view, drawn.index)
        yes, no = holds[drawn.fires], holds[~drawn.fires]
        return yes, (int(yes.sum()), int((~yes).sum()), int((~no).sum()), int(no.sum()))

    hit, counts = counted(rule)
    hits = np.bincount(tenth, weights=hit, minlength=10) / np.maximum(np.bincount(tenth, minlength=10), 1)
    by_quantile = {str(i): float(hits[i]) for i in np.unique(tenth)}
    scores = {"rule": score_from_counts(*counts, by_quantile=by_quantile)}
    if decoys:
        others = [counted(decoy)[1] for decoy in decoys]
        own = balanced_accuracy(*counts)
        rank = 1 + sum(balanced_accuracy(*other) >= own for other in others)
        scores["random_label"] = score_from_counts(*others[0], details={"decoys": len(decoys), "rank": rank})
    return scores


def _tenths(activation: NDArray[np.float32]) -> NDArray[np.int64]:
    """[k] which tenth of these activations each is of, 9 the strongest."""
    rank = np.empty(len(activation), dtype=np.int64)
    rank[np.argsort(activation, kind="stable")] = np.arange(len(activation))
    return rank * 10 // max(len(activation), 1)


_POOL = 16  # features whose rules serve as other features' labels
_DECOYS = 5
_RANGE = 128  # features of one job
_worker: dict[str, OfflineRun] = {}  # of a worker process: the run it was last sent


@dataclass(frozen=True, eq=False)
class OfflineRun:
    """What the features of one run share: the corpus, the labeler, and rules for comparison."""

    corpus: Corpus
    sampling: Sampling

    @cached_property
    def labeler(self) -> OfflineLabeler:
        return OfflineLabeler(self.corpus)

    @cached_property
    def pool(self) -> tuple[tuple[int, Rule], ...]:
        """Some features with their rules, chosen by the seed, whose labels other features are compared
        with."""
        often = np.flatnonzero(self.corpus.store.counts >= 2 * self.sampling.min_examples)
        chosen = np.random.default_rng([self.corpus.seed, 5]).permutation(often)[:_POOL]
        fitted = [(int(feature_id), fit(self.labeler.background, int(feature_id))) for feature_id in chosen]
        return tuple((feature_id, found.rule) for feature_id, found in fitted if found is not None)

    def decoys(self, feature_id: int, rule: Rule) -> list[Rule]:
        others = [each for own, each in self.pool if own != feature_id and each != rule]
        order = self.corpus.random(feature_id, 6).permutation(len(others))[:_DECOYS]
        return [others[i] for i in order]

    def label(self, feature_id: int, promotion: Promotion, provenance: Mapping[str, Any]) -> FeatureLabel:
        """Evidence → label → scores → confidence, for one feature."""
        evidence = shown_evidence(
            self.corpus, feature_id, self.sampling, promotion.promoted, promotion.suppressed
        )
        if evidence.status != "ok":
            return unlabelled(evidence, evidence.status, provenance)
        found = self.labeler.proposal(evidence)
        if isinstance(found, Abstention):
            return unlabelled(evidence, "uninterpretable", provenance, description=found.reason)
        assert found.rule is not None
        scores = score_rule(self.corpus, feature_id, found.rule, decoys=self.decoys(feature_id, found.rule))
        low = (scores["rule"].interval or (0.0,))[0]
        if low < WEAK:
            reason = (
                f"the best rule ({found.label}) does not hold on held-out texts: its balanced accuracy there "
                f"is {scores['rule'].balanced_accuracy:.2f}, and may be {low:.2f}"
            )
            return replace(
                unlabelled(evidence, "uninterpretable", provenance, description=reason), scores=scores
            )
        if not is_named(found.rule):
            reason = (
                f"no few words say where it fires: the best rule ({found.label}) has a balanced accuracy of "
                f"{scores['rule'].balanced_accuracy:.2f} there. A language model may see what they share."
            )
            return replace(
                unlabelled(evidence, "uninterpretable", provenance, description=reason), scores=scores
            )
        return with_scores(unlabelled(evidence, "uninterpretable", provenance), found, scores)


def unlabelled(
    evidence: FeatureEvidence,
    status: Status,
    provenance: Mapping[str, Any],
    *,
    description: str = "",
) -> FeatureLabel:
    """A feature without a label: its numbers, evidence and tokens."""
    return FeatureLabel(
        feature_id=evidence.feature_id,
        status=status,
        description=description,
        evidence=evidence.train_positives,
        density=evidence.density,
        max_activation=evidence.max_activation,
        mean_activation=evidence.mean_activation,
        top_tokens=evidence.top_tokens,
        promoted_tokens=evidence.promoted,
        suppressed_tokens=evidence.suppressed,
        provenance=provenance,
    )


@dataclass(frozen=True)
class _SentRun:
    """An `OfflineRun` as it is sent to a worker process: the store by its path, or whole where it has
    none."""

    key: str
    store: Any
    seed: int
    sampling: Sampling

    @classmethod
    def of(cls, run: OfflineRun) -> _SentRun:
        store, seed = run.corpus.store, run.corpus.seed
        whole = {each.name: getattr(store, each.name) for each in fields(store)}
        key = f"{store.digest} {seed} {run.sampling}"
        return cls(key, whole if store.path is None else store.path, seed, run.sampling)

    def received(self) -> OfflineRun:
        """The run in this process, which keeps it for its next job."""
        if self.key not in _worker:
            store = FeatureStore(**self.store) if isinstance(self.store, dict) else load_store(self.store)
            _worker.clear()
            _worker[self.key] = OfflineRun(Corpus(store, self.seed), self.sampling)
        return _worker[self.key]


class _Job(NamedTuple):
    """Some features to label."""

    run: OfflineRun | _SentRun
    feature_ids: Sequence[int]
    promotion: Promotion
    provenance: Mapping[str, Any]


def label_offline(
    run: OfflineRun,
    feature_ids: Sequence[int],
    promotion: Promotion,
    provenance: Mapping[str, Any],
    executor: Executor | None,
) -> Iterator[FeatureLabel]:
    """The label of every feature, in the order given."""
    if executor is None:
        yield from (run.label(feature_id, promotion, provenance) for feature_id in feature_ids)
        return
    source = run if shares_memory(executor) else _SentRun.of(run)
    jobs = []
    for start in range(0, len(feature_ids), _RANGE):
        part = tuple(feature_ids[start : start + _RANGE])
        own = Promotion(*({f: of[f] for f in part if f in of} for of in promotion))
        jobs.append(_Job(source, part, own, provenance))
    for labels in results_in_order(executor, _label_all, jobs):
        yield from labels


def _label_all(job: _Job) -> list[FeatureLabel]:
    run = job.run.received() if isinstance(job.run, _SentRun) else job.run
    return [run.label(feature_id, job.promotion, job.provenance) for feature_id in job.feature_ids]

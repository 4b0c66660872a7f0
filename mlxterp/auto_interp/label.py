"""`FeatureLabel`: what a feature is about, with its scores and the confidence that follows from them.

Also the protocols of labelers and scorers. `api.py` makes labels; `mlxterp.results.features` shows a list
of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mlxterp.auto_interp.confidence import elsewhere
from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Weighted, Window
from mlxterp.auto_interp.rules.rules import Rule, rule_from_dict, rule_to_dict
from mlxterp.errors import LabelingError

Status = Literal["ok", "dead", "too_few_examples", "uninterpretable", "refused", "error"]
Method = Literal["offline", "llm", "llm+offline"]
Kind = Literal["token", "affix", "context", "topic", "output", "position", "unclear"]

CONFIDENCE_FROM = ("rule", "detection", "fuzzing")
"""The scores that a label's confidence is the least of."""

LEAST_CONFIDENCE = 0.1
"""A label with less confidence is not given: its feature is "uninterpretable"."""


@dataclass(frozen=True)
class Usage:
    """The cost of language-model calls: tokens, and dollars where the price is known."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    usd: float | None = None
    calls: int = 0

    def __add__(self, other: Usage) -> Usage:
        usd = None if self.usd is None and other.usd is None else (self.usd or 0.0) + (other.usd or 0.0)
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            usd,
            self.calls + other.calls,
        )


@dataclass(frozen=True)
class Score:
    """How well a label tells where the feature fires from where it does not, on held-out text.

    Attributes:
        balanced_accuracy: the mean of the true positive and the true negative rate.
        interval: of the balanced accuracy, 95 %.
        confidence: P(balanced accuracy ≥ 0.75 | the counts), from flat priors on both rates.
        true_positives, false_negatives, true_negatives, false_positives: the counts.
        auroc, auroc_interval: where a scorer gives more than yes or no.
        by_quantile: the true positive rate for each tenth of the feature's activations, if it was measured.
        details: other plain values.
        coverage: the share of texts that the judge decided; the counts are of these.

    Where too few texts were decided there is no score: balanced accuracy, interval and confidence are None,
    and `details["reason"]` says why.
    """

    balanced_accuracy: float | None
    interval: tuple[float, float] | None
    confidence: float | None
    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int
    auroc: float | None = None
    auroc_interval: tuple[float, float] | None = None
    by_quantile: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    coverage: float = 1.0


@dataclass(frozen=True)
class Proposal:
    """A labeler's label of a feature, not yet scored.

    `rule` is an executable form of it, or None. `llm_confidence` is a language model's own estimate.
    """

    label: str
    description: str
    kind: Kind
    rule: Rule | None = None
    llm_confidence: float | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Abstention:
    """A labeler finds no label that holds."""

    reason: str
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class LabelingFailure:
    """A labeler failed on this feature: "refused", or "error" with the reason."""

    status: Literal["refused", "error"]
    error: str
    usage: Usage = field(default_factory=Usage)


class Labeler(Protocol):
    """Gives a feature a label from its evidence. `name` goes into the label's provenance."""

    @property
    def name(self) -> str: ...

    async def propose(self, evidence: FeatureEvidence) -> Proposal | Abstention | LabelingFailure:
        """A label, none, or why it failed. Looks at the training half only."""


class Scorer(Protocol):
    """Measures a proposal on the test half of a feature's evidence."""

    async def score(self, evidence: FeatureEvidence, proposal: Proposal) -> Mapping[str, Score]:
        """Scores by their name, as in {"detection": Score(...)}; empty if nothing could be measured."""


@dataclass(frozen=True, kw_only=True)
class FeatureLabel:
    """The label of one feature. A value: tests return a new one.

    Attributes:
        feature_id: which feature.
        label: a few words, as in `token " the"`; None unless `status` is "ok".
        description: a sentence or two more.
        confidence: the probability, given the counts on held-out text, that the label tells where the feature
            fires with a balanced accuracy of 0.75 or more on more text of the same kind; of several scores
            the least. 0 where no label was given. A language model's own estimate is `llm_confidence`.
        confidence_elsewhere: the same on another kind of text than it was tested on (`confidence.elsewhere`),
            or on one of which some text was looked at (`recalibrate_confidence`, which
            `provenance["elsewhere"]` then says);
            None where no label was given.
        evidence: the windows in which the feature fires that the labeler was shown, strongest first.
        sensitivity_passed: outcome of `sensitivity_test`; None before it, and where it had too few items.
        sensitivity_details: the outcome as a text.
        status: "ok", or why there is no label.
        error: the reason where status is "error" or "refused".
        rule: the label's claim as an executable predicate, or None.
        method: the kind of labeler.
        llm_confidence: a language model's own estimate.
        scores: on held-out text, by scorer; "random_label" is another feature's label on this feature's text.
        density: the share of tokens at which the feature fires.
        max_activation, mean_activation: the mean is over the tokens where it fires.
        top_tokens: where it fires, with each token's share of its activation.
        promoted_tokens, suppressed_tokens: those whose logits it raises and lowers, if that was computed.
        sensitivity: the numbers behind `sensitivity_details`.
        usage: the cost of language-model calls.
        provenance: model, SAE, texts, seed, versions.
    """

    feature_id: int
    label: str | None = None
    description: str = ""
    confidence: float = 0.0
    confidence_elsewhere: float | None = None
    evidence: tuple[Window, ...] = ()
    sensitivity_passed: bool | None = None
    sensitivity_details: str = ""
    status: Status = "ok"
    error: str | None = None
    rule: Rule | None = None
    method: Method = "offline"
    kind: Kind = "unclear"
    llm_confidence: float | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    density: float = 0.0
    max_activation: float = 0.0
    mean_activation: float = 0.0
    top_tokens: Weighted = ()
    promoted_tokens: Weighted = ()
    suppressed_tokens: Weighted = ()
    sensitivity: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.label is None) == (self.status == "ok"):
            raise LabelingError(
                f"Feature {self.feature_id} with the label {self.label!r} and the status {self.status!r}. "
                'A label that was given has the status "ok"; every other status has the label None.'
            )
        if not 0.0 <= self.confidence <= 1.0 or (self.label is None and self.confidence):
            raise LabelingError(
                f"A confidence of {self.confidence} for the label {self.label!r} of {self.feature_id}. "
                "It is a probability, and 0 where there is no label."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, rule=None, evidence=()))
        plain["rule"] = None if self.rule is None else rule_to_dict(self.rule)
        # Not by asdict, which copies each token of each window: most of the time.
        plain["evidence"] = [
            {**vars(each), "tokens": list(each.tokens), "activations": list(each.activations)}
            for each in self.evidence
        ]
        return plain

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> FeatureLabel:
        """The inverse of `to_dict`, also after JSON.

        Raises:
            LabelingError: fields that are unknown, missing or contradict each other.
        """
        known = {each.name for each in dataclasses.fields(FeatureLabel)}
        if set(data) - known or "feature_id" not in data:
            raise LabelingError(
                f"A label with the fields {', '.join(sorted(data))}; it needs feature_id, and may have "
                f"{', '.join(sorted(known))}."
            )
        values = dict(data)
        values["evidence"] = tuple(_window(each) for each in data.get("evidence", ()))
        values["scores"] = {name: _score(each) for name, each in data.get("scores", {}).items()}
        values["usage"] = Usage(**data.get("usage", {}))
        for name in ("top_tokens", "promoted_tokens", "suppressed_tokens"):
            values[name] = tuple((str(token), float(weight)) for token, weight in data.get(name, ()))
        rule = data.get("rule")
        values["rule"] = None if rule is None else rule_from_dict(rule)
        return FeatureLabel(**values)


def with_scores(blank: FeatureLabel, found: Proposal, scores: Mapping[str, Score]) -> FeatureLabel:
    """The label that was proposed for a feature, with its scores and the confidence they give.

    The confidence is the least of `CONFIDENCE_FROM`. Below `LEAST_CONFIDENCE` the feature is
    "uninterpretable" and gets no label; where none of these scores has a value, the status is "error" with
    the reason.

    Args:
        blank: the feature without a label.
    """
    deciding = {name: scores[name] for name in CONFIDENCE_FROM if name in scores}
    stated = {each.confidence: name for name, each in deciding.items() if each.confidence is not None}
    without = dataclasses.replace(
        blank,
        status="uninterpretable",
        label=None,
        description="",
        kind="unclear",
        rule=None,
        confidence=0.0,
        confidence_elsewhere=None,
        scores=scores,
    )
    if deciding and not stated:
        reasons = "; ".join(f"{name}: {each.details.get('reason', '')}" for name, each in deciding.items())
        return dataclasses.replace(without, status="error", error=f"no score: {reasons}")
    confidence = min(stated, default=0.0)
    if confidence < LEAST_CONFIDENCE:
        reason = f"the best label ({found.label}) does not hold on held-out texts"
        if stated:
            accuracy = deciding[stated[confidence]].balanced_accuracy
            reason += f", where the balanced accuracy of its {stated[confidence]} score is {accuracy:.2f}"
        return dataclasses.replace(without, description=reason)
    return dataclasses.replace(
        without,
        status="ok",
        label=found.label,
        description=found.description,
        kind=found.kind,
        rule=found.rule,
        llm_confidence=found.llm_confidence,
        confidence=confidence,
        confidence_elsewhere=min(
            elsewhere(s.true_positives, s.false_negatives, s.true_negatives, s.false_positives)
            for s in deciding.values()
            if s.confidence is not None
        ),
    )


def _window(data: Mapping[str, Any]) -> Window:
    lists = {"tokens": tuple(data["tokens"]), "activations": tuple(data["activations"])}
    return Window(**{**data, **lists})


def _score(data: Mapping[str, Any]) -> Score:
    pairs = {
        name: None if data[name] is None else (data[name][0], data[name][1])
        for name in ("interval", "auroc_interval")
        if name in data
    }
    return Score(**{**data, **pairs})

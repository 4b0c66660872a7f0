"""Labels by a language model: several candidates from one question, the best of them by what it detects.

Prompts and forms of answers are in `prompts.py`, the held-out score of the label in `scorers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Weighted
from mlxterp.auto_interp.label import Abstention, LabelingFailure, Proposal, Usage
from mlxterp.auto_interp.llm.asking import Invalid, ask
from mlxterp.auto_interp.llm.prompts import (
    DESCRIPTION_WORDS,
    LABEL_WORDS,
    VERSION,
    Candidate,
    Candidates,
    block,
    example,
    instructions,
    marked,
)
from mlxterp.auto_interp.llm.scorers import PER_CALL, Item, detection, judge
from mlxterp.auto_interp.scores import UNDECIDED
from mlxterp.errors import LlmAway, LlmBudgetReached
from mlxterp.llm import Completer, Request, together

_MAX_TOKENS = 6_000
_CUES = 5
_MISTAKES = 5
"""Texts of each kind that a revision is shown."""


@dataclass(frozen=True)
class LlmLabeler:
    """Asks a language model what a feature is about.

    Args:
        completer: the model.
        candidates: how many labels one question asks for. If more than one, each is scored by one question of
            `detection` on the training half, and the best is taken; of equals, the first.
        revisions: times that the best label is sent back with its mistakes on the training half, and replaced
            if the new one makes fewer.
        seed: of the choice and order of training texts that candidates are tried on.

    A feature takes 1 + `candidates` questions (1 with a single one), and 2 more for each revision. The model
    may find nothing, which is an abstention. Its own confidence becomes `llm_confidence`.

    Source: Paulo et al. 2024, arXiv:2410.13928; choosing among candidates by score: Choi et al. 2024,
    "Scaling Automatic Neuron Description" (simulation there, detection here).
    """

    completer: Completer
    candidates: int = 3
    revisions: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        return f"llm:{self.completer.model}:{VERSION}"

    async def propose(self, evidence: FeatureEvidence) -> Proposal | Abstention | LabelingFailure:
        """A label from the training half, no label, or why there is none.

        No question is asked about a feature without evidence. Refusals, answers that are unusable twice, a
        service that stays away and a spent budget are failures of this feature.

        Raises:
            LlmRejected: the service rejects every question, as with a wrong key.
        """
        if evidence.status != "ok":
            return Abstention(
                f"the feature's status is {evidence.status}: there is not enough to label it from"
            )
        labeling = _Labeling(self, evidence)
        try:
            return await labeling.run()
        except (LlmAway, LlmBudgetReached) as problem:
            return LabelingFailure("error", str(problem), labeling.usage)


class _Tried(NamedTuple):
    """A candidate with what it detects on the training half."""

    candidate: Candidate
    proposal: Proposal
    accuracy: float
    missed: Sequence[str]
    false_alarms: Sequence[str]


@dataclass
class _Labeling:
    """The labeling of one feature."""

    by: LlmLabeler
    evidence: FeatureEvidence
    usage: Usage = field(default_factory=Usage)

    async def run(self) -> Proposal | Abstention | LabelingFailure:
        first = await self._ask("label", {"wanted": self.by.candidates, **evidence_data(self.evidence)})
        if isinstance(first, LabelingFailure):
            return first
        real = [each for each in first if each.kind != "unclear"]
        if not real:
            return Abstention(_one_line(first[0].reasoning) or "the model sees nothing in common", self.usage)
        if len(real) == 1 and not self.by.revisions:
            return self._with_usage(_proposal(real[0]))
        tried = await together(*(self._try(each) for each in real[: self.by.candidates]))
        best = max(tried, key=lambda each: each.accuracy)
        for _ in range(self.by.revisions):
            if not best.missed and not best.false_alarms:
                break
            better = await self._revise(best)
            if better is not None and better.accuracy > best.accuracy:
                best = better
        return self._with_usage(best.proposal)

    async def _ask(
        self, task: Literal["label", "revise"], data: dict[str, Any]
    ) -> list[Candidate] | LabelingFailure:
        """The candidates that keep to the limits; asked for a second time if none does."""
        request = Request(
            system=instructions(task),
            user=block(data),
            schema=Candidates,
            max_tokens=_MAX_TOKENS,
            version=VERSION,
        )

        def accept(value: Candidates) -> list[Candidate] | Invalid:
            kept = [each for each in value.candidates if each.kind == "unclear" or _keeps_limits(each)]
            limits = f"{LABEL_WORDS} and {DESCRIPTION_WORDS} words"
            return kept or Invalid(f"none of {len(value.candidates)} labels keeps to {limits}")

        answer = await ask(self.by.completer, request, Candidates, accept, on_usage=self._count)
        if answer.value is not None:
            return answer.value
        return LabelingFailure("refused" if answer.refused else "error", answer.reason, self.usage)

    def _count(self, usage: Usage) -> None:
        self.usage += usage

    async def _try(self, candidate: Candidate) -> _Tried:
        proposal = _proposal(candidate)
        items = self._training_texts()
        answers = await judge(self.by.completer, "detection", proposal, [item.text for item in items])
        self.usage += answers.usage
        right = [_credit(p, item.fires) for p, item in zip(answers.probabilities, items, strict=True)]
        of_each = [
            [credit for credit, item in zip(right, items, strict=True) if item.fires is fires]
            for fires in (True, False)
        ]
        wrong = [item for credit, item in zip(right, items, strict=True) if credit == 0]
        return _Tried(
            candidate,
            proposal,
            sum(sum(each) / len(each) if each else 0.5 for each in of_each) / 2,
            [item.text for item in wrong if item.fires][:_MISTAKES],
            [item.text for item in wrong if not item.fires][:_MISTAKES],
        )

    async def _revise(self, best: _Tried) -> _Tried | None:
        before = {"label": best.candidate.label, "description": best.candidate.description}
        data = {
            "wanted": 1,
            "label": before,
            "missed": best.missed,
            "false_alarms": best.false_alarms,
            **evidence_data(self.evidence),
        }
        found = await self._ask("revise", data)
        if isinstance(found, LabelingFailure) or found[0].kind == "unclear":
            return None
        return await self._try(found[0])

    def _training_texts(self) -> list[Item]:
        """The items of one question: half positives of all strengths, half negatives; the same for all
        candidates."""
        random = np.random.default_rng([self.by.seed, self.evidence.feature_id, 2])
        chosen = [
            [windows[i] for i in random.permutation(len(windows))[: PER_CALL // 2]]
            for windows in (self.evidence.train_positives, self.evidence.train_negatives)
        ]
        items = detection(*chosen)
        return [items[i] for i in random.permutation(len(items))]

    def _with_usage(self, proposal: Proposal) -> Proposal:
        return Proposal(
            proposal.label, proposal.description, proposal.kind, None, proposal.llm_confidence, self.usage
        )


def evidence_data(evidence: FeatureEvidence) -> dict[str, Any]:
    """A feature's evidence from the training half, as data of a question."""
    return {
        "examples": [example(window, evidence.max_activation) for window in evidence.train_positives],
        "counterexamples": [marked(window.tokens, ()) for window in evidence.train_negatives],
        "tokens": _weighted(evidence.top_tokens),
        "tokens_after": _weighted(evidence.next_tokens),
        "promoted": _weighted(evidence.promoted),
        "suppressed": _weighted(evidence.suppressed),
    }


def _weighted(tokens: Weighted) -> list[list[Any]]:
    return [[token, round(weight, 3)] for token, weight in tokens]


def _credit(probability: float, fires: bool) -> float:  # noqa: FBT001 - a truth value, not an option
    if probability == UNDECIDED:
        return 0.5
    return float((probability > 0.5) is fires)


def _proposal(candidate: Candidate) -> Proposal:
    parts = [_one_line(candidate.description)]
    if candidate.positive_cues:
        parts.append(f"Cues: {_quoted(candidate.positive_cues)}.")
    if candidate.exclusions:
        parts.append(f"Not: {_quoted(candidate.exclusions)}.")
    return Proposal(
        _one_line(candidate.label),
        " ".join(parts),
        candidate.kind,
        llm_confidence=candidate.confidence / 100,
    )


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{" ".join(each.split())[:40]}"' for each in words[:_CUES])


def _keeps_limits(candidate: Candidate) -> bool:
    label, description = candidate.label.split(), candidate.description.split()
    return 1 <= len(label) <= LABEL_WORDS and len(description) <= DESCRIPTION_WORDS


def _one_line(text: str) -> str:
    """The text without line breaks and other unprintable characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())

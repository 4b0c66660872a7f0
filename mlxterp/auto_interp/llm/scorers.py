"""Labels judged by a language model that sees the label and texts, and does not know where the feature fires.

Detection asks whether a text has what the label says; fuzzing, whether the marked tokens are the right ones.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Window
from mlxterp.auto_interp.label import Proposal, Score, Usage
from mlxterp.auto_interp.llm.asking import Invalid, ask
from mlxterp.auto_interp.llm.prompts import (
    DECOYS,
    VERSION,
    Judgement,
    Task,
    active,
    block,
    instructions,
    marked,
)
from mlxterp.auto_interp.scores import UNDECIDED, score_from_answers
from mlxterp.llm import Completer, Request, together

PER_CALL = 20
"""Texts in one question: 100 positives and 100 negatives take 10 questions."""

_MAX_TOKENS = 3_000


class Item(NamedTuple):
    """One text to be judged, and whether yes is right. `source` tells two versions of one window apart."""

    text: str
    fires: bool
    source: int
    quantile: int | None = None


@dataclass(frozen=True)
class Answers:
    """A model's judgements of some texts.

    Attributes:
        probabilities: one per text, in the order of the texts; `UNDECIDED` where `failed`.
        failed: the texts without a usable answer, with the reason.
    """

    probabilities: tuple[float, ...]
    failed: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class LlmScorer:
    """Scores a label by a language model's judgement of held-out texts.

    Args:
        completer: the judge. It may be another model than the labeler's.
        tasks: "detection" asks whether a text has what the label says; "fuzzing" marks tokens, the right ones
            or others, and asks whether they are the right ones.
        per_call: texts in one question, about half of them positive; how many, the question does not say.
        seed: of the order of the texts, of wrong marks and of the decoy, together with the feature's number.
        decoys: labels and descriptions of other features. One of them is judged by one question of detection,
            as "random_label": the score of a label that was not written for this feature. Empty: none is.

    A question takes about 1,000 tokens of texts besides the instructions, which the service caches. An
    answer that cannot be used is asked for once more; then its texts are undecided, as those with a
    probability of 0.5 are, and reported under `details["failed"]`. Undecided texts count neither as yes nor
    as no; with fewer than 80 % decided there is no score (`score_from_answers`). `details["usage"]` is the
    cost.

    Source: Paulo et al. 2024, "Automatically Interpreting Millions of Features in Large Language Models",
    arXiv:2410.13928. Deviations: probabilities are asked for rather than read from logits; half of the wrong
    marks of fuzzing are in texts where the feature fires, on tokens where it does not; both classes weigh the
    same.
    """

    completer: Completer
    tasks: tuple[Task, ...] = ("detection", "fuzzing")
    per_call: int = PER_CALL
    seed: int = 0
    decoys: Sequence[tuple[str, str]] = DECOYS

    async def score(self, evidence: FeatureEvidence, proposal: Proposal) -> Mapping[str, Score]:
        """{"detection": …, "fuzzing": …, "random_label": …} on the test half; empty if a class is missing.

        Raises:
            LlmError: the service rejected a question, did not answer, or `max_usd` is reached.
        """
        if not evidence.test_positives or not evidence.test_negatives:
            return {}
        jobs: dict[str, Coroutine[Any, Any, Score]] = {
            task: self._score(task, evidence, proposal) for task in self.tasks
        }
        others = [each for each in self.decoys if each[0] != proposal.label]
        if others:
            jobs["random_label"] = self._baseline(evidence, others)
        return dict(zip(jobs, await together(*jobs.values()), strict=True))

    async def _baseline(self, evidence: FeatureEvidence, others: Sequence[tuple[str, str]]) -> Score:
        random = np.random.default_rng([self.seed, evidence.feature_id, 4])
        decoy = Proposal(*others[int(random.integers(len(others)))], "unclear")
        positives, negatives = (
            [windows[i] for i in random.permutation(len(windows))[: self.per_call // 2]]
            for windows in (evidence.test_positives, evidence.test_negatives)
        )
        score = await self._judged("detection", detection(positives, negatives), decoy, random)
        return replace(score, details={**score.details, "label": decoy.label})

    async def _score(self, task: Task, evidence: FeatureEvidence, proposal: Proposal) -> Score:
        random = np.random.default_rng([self.seed, evidence.feature_id, 0 if task == "detection" else 1])
        positives, negatives = evidence.test_positives, evidence.test_negatives
        items = (
            detection(positives, negatives) if task == "detection" else fuzzing(positives, negatives, random)
        )
        return await self._judged(task, items, proposal, random)

    async def _judged(
        self, task: Task, items: Sequence[Item], proposal: Proposal, random: np.random.Generator
    ) -> Score:
        questions = dealt(items, self.per_call, random)
        found = await together(
            *(judge(self.completer, task, proposal, [items[i].text for i in each]) for each in questions)
        )
        probabilities, failed = [UNDECIDED] * len(items), {}
        for each, answers in zip(questions, found, strict=True):
            for place, index in enumerate(each):
                probabilities[index] = answers.probabilities[place]
                if place in answers.failed:
                    failed[index] = answers.failed[place]
        usage = sum((answers.usage for answers in found), Usage())
        return _score(items, probabilities, failed, usage)


def detection(positives: Sequence[Window], negatives: Sequence[Window]) -> list[Item]:
    """The texts without marks."""
    return [
        Item(marked(window.tokens, ()), fires, source, window.quantile)
        for source, (window, fires) in enumerate(
            [(window, True) for window in positives] + [(window, False) for window in negatives]
        )
    ]


def fuzzing(
    positives: Sequence[Window], negatives: Sequence[Window], random: np.random.Generator
) -> list[Item]:
    """Every positive with its own marks, and as many texts with the same marks elsewhere.

    Every other wrong one is a positive again, marked where the feature does not fire, if it has the room.
    """
    items = [
        Item(marked(window.tokens, active(window)), fires=True, source=source, quantile=window.quantile)
        for source, window in enumerate(positives)
    ]
    for number, source in enumerate(random.permutation(len(positives))):
        pattern = active(positives[source])
        again = number % 2 == 0
        place = int(source) if again else len(positives) + number % len(negatives)
        window = positives[source] if again else negatives[number % len(negatives)]
        elsewhere = _moved(window, pattern, random)
        if not elsewhere and again:
            place, window = len(positives) + number % len(negatives), negatives[number % len(negatives)]
            elsewhere = _moved(window, pattern, random)
        if elsewhere:
            items.append(Item(marked(window.tokens, elsewhere), fires=False, source=place))
    return items


def _moved(window: Window, pattern: Sequence[int], random: np.random.Generator) -> Collection[int]:
    """The pattern of marks shifted to where the feature does not fire; its first mark alone if it must be."""
    silent = [not each for each in window.activations]
    for marks in (pattern, pattern[:1]):
        offsets = [each - marks[0] for each in marks]
        starts = [
            start
            for start in range(len(silent) - offsets[-1])
            if all(silent[start + offset] for offset in offsets)
        ]
        if starts:
            start = int(random.choice(starts))
            return [start + offset for offset in offsets]
    return ()


def dealt(items: Sequence[Item], per_call: int, random: np.random.Generator) -> list[list[int]]:
    """The items in questions of at most `per_call`, shuffled; never two versions of one window in one.

    Windows with several versions are dealt first, while every question has room, so that no more questions
    are needed than the numbers demand.
    """
    versions = Counter(item.source for item in items)
    order = sorted(random.permutation(len(items)).tolist(), key=lambda i: -versions[items[i].source])
    questions: list[list[int]] = [[] for _ in range(math.ceil(len(items) / per_call))]
    for index in order:
        free = [
            question
            for question in questions
            if len(question) < per_call and all(items[i].source != items[index].source for i in question)
        ]
        if not free:
            free = [[]]
            questions.append(free[0])
        min(free, key=len).append(index)
    return [random.permutation(question).tolist() for question in questions]


async def judge(completer: Completer, task: Task, proposal: Proposal, texts: Sequence[str]) -> Answers:
    """The probability of yes for each text: one question, a second one if the answer cannot be used."""
    data = {
        "label": proposal.label,
        "description": proposal.description,
        "texts": [{"i": i, "text": text} for i, text in enumerate(texts, 1)],
    }
    request = Request(
        system=instructions(task),
        user=block(data),
        schema=Judgement,
        max_tokens=_MAX_TOKENS,
        effort="low",
        version=VERSION,
    )

    def accept(value: Judgement) -> tuple[float, ...] | Invalid:
        found = {each.i: each.prob / 100 for each in value.p}
        if sorted(each.i for each in value.p) != list(range(1, len(texts) + 1)):
            return Invalid(f"{len(value.p)} judgements of other texts than the {len(texts)} in the question")
        return tuple(found[i] for i in range(1, len(texts) + 1))

    answer = await ask(completer, request, Judgement, accept, retry_refusal=True)
    if answer.value is not None:
        return Answers(answer.value, usage=answer.usage)
    failed = dict.fromkeys(range(len(texts)), answer.reason)
    return Answers((UNDECIDED,) * len(texts), failed, answer.usage)


def _score(
    items: Sequence[Item], probabilities: Sequence[float], failed: Mapping[int, str], usage: Usage
) -> Score:
    by_quantile: defaultdict[str, list[float]] = defaultdict(list)
    for item, probability in zip(items, probabilities, strict=True):
        if item.fires and item.quantile is not None and probability != UNDECIDED:
            by_quantile[str(item.quantile)].append(float(probability > UNDECIDED))
    details: dict[str, object] = {"usage": asdict(usage), "failed": len(failed)}
    if failed:
        details["failures"] = sorted(set(failed.values()))
    positive, negative = (
        [p for item, p in zip(items, probabilities, strict=True) if item.fires is fires]
        for fires in (True, False)
    )
    return score_from_answers(
        positive,
        negative,
        by_quantile={each: float(np.mean(found)) for each, found in sorted(by_quantile.items())},
        details=details,
    )

"""Features whose truth is known, and judges of known skill: no model and no network."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Window
from mlxterp.auto_interp.llm.prompts import instructions
from mlxterp.llm import Request, ScriptedCompleter

WORDS = [" the", " old", " man", " went", " home", " and", " sat", " by", " a", " river", ".", " Then", " it"]
CAT = " cat"


def data_of(request: Request) -> dict[str, Any]:
    """What a question says, read back from its block of data."""
    begin, line, end = request.user.split("\n")
    assert (begin, end) == ("<data>", "</data>")
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def window(random: np.random.Generator, *, fires: bool, document: int, length: int = 16) -> Window:
    """Random words; a firing one has ` cat` at a random place and the activation there."""
    tokens = [WORDS[i] for i in random.integers(len(WORDS), size=length)]
    acts = [0.0] * length
    peak = int(random.integers(length))
    if fires:
        tokens[peak] = CAT
        acts[peak] = float(random.uniform(0.5, 4.0))
    return Window(
        document, 3, tuple(tokens), tuple(acts), peak, quantile=int(random.integers(10)) if fires else None
    )


def evidence(feature_id: int = 7, *, train: int = 20, test: int = 50, seed: int = 0) -> FeatureEvidence:
    """A feature that fires on ` cat` and on nothing else."""
    random = np.random.default_rng([seed, feature_id])

    def windows(n: int, first: int, *, fires: bool) -> tuple[Window, ...]:
        return tuple(window(random, fires=fires, document=first + i) for i in range(n))

    return FeatureEvidence(
        feature_id,
        "ok",
        train_positives=windows(train, 0, fires=True),
        train_negatives=windows(train, 1000, fires=False),
        test_positives=windows(test, 2000, fires=True),
        test_negatives=windows(test, 3000, fires=False),
        top_tokens=((CAT, 1.0),),
        next_tokens=((" sat", 0.4),),
        promoted=((" purr", 2.0),),
        suppressed=((" bark", -2.0),),
        density=0.01,
        max_activation=4.0,
        mean_activation=2.0,
    )


def holds(concept: dict[str, Any], text: str, *, fuzzing: bool) -> bool:
    """Whether a text fits a label that names a word, read literally."""
    word = str(concept["label"]).strip()
    if not fuzzing:
        return f" {word}" in text
    return all(mark.strip() == word for mark in re.findall(r"<<(.*?)>>", text))


class FakeJudge(ScriptedCompleter):
    """Judges texts by the label's word and is right with probability `accuracy`; labels by a list.

    Args:
        accuracy: of each judgement, drawn for itself.
        candidates: what it answers when it is asked for labels.
    """

    def __init__(
        self,
        accuracy: float = 1.0,
        *,
        candidates: list[dict[str, Any]] | None = None,
        seed: int = 0,
        model: str = "fake-judge",
    ) -> None:
        super().__init__(self._answer, model=model)
        self.accuracy = accuracy
        self.candidates = [candidate("cat")] if candidates is None else candidates
        self.random = np.random.default_rng(seed)

    def _answer(self, request: Request) -> str:
        data = data_of(request)
        if request.system in (instructions("label"), instructions("revise")):
            return json.dumps({"candidates": self.candidates})
        fuzzing = request.system == instructions("fuzzing")
        said = []
        for each in data["texts"]:
            right = self.random.random() < self.accuracy
            yes = holds(data, each["text"], fuzzing=fuzzing) is right
            said.append({"i": each["i"], "prob": 90 if yes else 10})
        return json.dumps({"p": said})


def candidate(label: str, **changes: Any) -> dict[str, Any]:
    """A label as a model would propose it."""
    return {
        "reasoning": "it is in all examples",
        "label": label,
        "description": f"Fires on {label}.",
        "kind": "token",
        "positive_cues": [f" {label}"],
        "exclusions": [],
        "confidence": 80,
        **changes,
    }


def asked(judge: ScriptedCompleter, what: Any) -> list[Request]:
    """The questions of one kind."""
    return [request for request in judge.requests if request.system == instructions(what)]

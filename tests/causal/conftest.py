"""Pairs for the tiny models, and the naive patching that sweeps are compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlxterp.causal import PromptPair
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.models import toy, toy_circuit
from tests.tiny_models import FAMILIES, ByteTokenizer, tiny_module

CLEAN, CORRUPTED = "the cat sat", "the dog sat"
"""Eleven tokens each; the first difference is at position 4, the last at 6."""
FIRST_DIFFERENCE = 4
PAIR = PromptPair(CLEAN, CORRUPTED, answer="x", foil="y")
PAIRS = [
    PAIR,
    PromptPair("the cow ran", "the pig ran", answer="a", foil="b"),
    PromptPair("the ant hid", "the bee hid", answer="k", foil="q"),
]


TOKENS = np.array([list(CLEAN.encode()), list(CORRUPTED.encode())])
"""Both prompts as the byte tokenizer reads them."""


def everything(logits, examples):
    """A number per row that depends on all of its logits and on which prompt it is said to start from."""
    weights = np.cos(np.arange(logits.shape[1]))
    return logits.astype(np.float64) @ weights + 100.0 * examples


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def any_family(request: pytest.FixtureRequest) -> InterpretableModel:
    return InterpretableModel(tiny_module(request.param), ByteTokenizer())


@pytest.fixture(scope="session")
def toy_model() -> InterpretableModel:
    return InterpretableModel(*toy.load())


def logit_difference(
    model: InterpretableModel, prompt: str, *edits: Intervention, pair: PromptPair = PAIR
) -> float:
    """One plain forward, computed without anything of `mlxterp.causal`."""
    row = np.array(model.logits(prompt, interventions=edits))[0, -1].astype(np.float64)
    return float(row[model.to_single_token(pair.answer)] - row[model.to_single_token(pair.foil)])


def naive_recovery(model: InterpretableModel, *edits: Intervention, pair: PromptPair = PAIR) -> float:
    """The recovered logit difference of the corrupted prompt with these edits, one forward per number."""
    measure: Callable[..., float] = lambda prompt, *e: logit_difference(model, prompt, *e, pair=pair)  # noqa: E731
    clean, corrupted = measure(pair.clean), measure(pair.corrupted)
    return (measure(pair.corrupted, *edits) - corrupted) / (clean - corrupted)


def planted_edges() -> set[str]:
    """The edges that carry a token; those that carry a position are the same on every prompt of a length."""
    names = []
    for edge in toy_circuit.truth()["edges"]:
        if edge["carries"] == "token":
            names.append(f"{edge['from'].replace('embed', 'input')}→{edge['to']}")
    return set(names)


def random_token_pairs(n: int = 8, n_words: int = 26) -> list[PromptPair]:
    """`A B C D E A` → B, against six random words: every token-carrying edge carries something else."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(n):
        a, b, c, d, e = rng.choice(n_words, size=5, replace=False).tolist()
        other = tuple(rng.choice(n_words, size=6, replace=False).tolist())
        pairs.append(PromptPair((a, b, c, d, e, a), other, answer=b, foil=c))
    return pairs

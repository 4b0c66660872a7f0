"""Models and pairs of the workflows' tests."""

from __future__ import annotations

import pytest

from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import repeated_random_pairs


@pytest.fixture(scope="session")
def toy_model() -> InterpretableModel:
    return InterpretableModel("toy-induction")


@pytest.fixture(scope="session")
def pairs(toy_model):
    """`dog salt … lake tree … dog`: the repetition is continued with `salt`, and not with `tree`."""
    return repeated_random_pairs(toy_model, n=4, period=6, seed=0)

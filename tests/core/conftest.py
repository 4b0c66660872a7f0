"""Every family in turn, and what tests of hook points compare with."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core.model import InterpretableModel
from tests.tiny_models import FAMILIES, ByteTokenizer, tiny_module


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def any_family(request: pytest.FixtureRequest) -> InterpretableModel:
    return InterpretableModel(tiny_module(request.param), ByteTokenizer())


def close(got: mx.array, expected: mx.array, tolerance: float = 1e-5) -> bool:
    """Whether two arrays have one shape and agree, relative to the largest expected value."""
    a, b = np.array(got.astype(mx.float32)), np.array(expected.astype(mx.float32))
    return a.shape == b.shape and float(np.abs(a - b).max()) <= tolerance * max(1.0, float(np.abs(b).max()))

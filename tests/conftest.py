"""Models that every test may use: tiny, random, made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from mlxterp_agent.sandbox.jail import protection
from mlxterp_agent.supervisor.prepare import ALLOW_UNSANDBOXED_ENV

if TYPE_CHECKING:
    from mlxterp.core.model import InterpretableModel


@pytest.fixture(scope="session")
def tiny_llama() -> InterpretableModel:
    """Grouped-query attention, RMS norms, untied unembedding; 3 layers, 4 heads, 2 key/value heads."""
    # Here and not above: tests of the machinery do without mlx.
    from mlxterp.core.model import InterpretableModel
    from tests.tiny_models import ByteTokenizer, tiny_module

    return InterpretableModel(tiny_module("llama"), ByteTokenizer())


@pytest.fixture(autouse=True)
def no_announcements_of_the_installed_sdk() -> Iterator[None]:
    """Which models have ended is read from our own table: the SDK's differs from version to version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxterp.llm.prices.sdk_table", dict)
        yield


@pytest.fixture(scope="session", autouse=True)
def without_a_jail_where_the_machine_has_none() -> Iterator[None]:
    """Every supervised run of the tests is jailed, except on a machine that offers no jail."""
    with pytest.MonkeyPatch.context() as patch:
        if protection().kind == "none":
            patch.setenv(ALLOW_UNSANDBOXED_ENV, "1")
        yield


@pytest.fixture
def pinned_threads() -> Iterator[None]:
    """For a test that compares the last bits of two equal computations: their products are cut alike."""
    from mlxterp.core.linux_blas import blas

    with blas.pinned_threads():
        yield


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more worker than cores for the default group, whose tests often wait; slow ones compute."""
    return (os.cpu_count() or 1) + (config.option.markexpr == "not slow")

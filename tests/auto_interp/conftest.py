"""The planted features, found in texts once for all tests."""

from __future__ import annotations

import pytest

from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.label import FeatureLabel
from mlxterp.core.model import InterpretableModel
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from tests.auto_interp import planted


@pytest.fixture(scope="session")
def model() -> InterpretableModel:
    return planted.toy()


@pytest.fixture(scope="session")
def sae() -> SAE:
    return planted.planted_sae()


@pytest.fixture(scope="session")
def store(model: InterpretableModel, sae: SAE) -> FeatureStore:
    from mlxterp.sae.feature_store.build import build_store

    return build_store(model, sae, planted.texts(240))


@pytest.fixture(scope="session")
def held_out(model: InterpretableModel, sae: SAE) -> FeatureStore:
    """Other texts."""
    from mlxterp.sae.feature_store.build import build_store

    return build_store(model, sae, planted.texts(60, seed=1))


@pytest.fixture(scope="session")
def labels(model: InterpretableModel, sae: SAE, store: FeatureStore) -> list[FeatureLabel]:
    """Labels of a quarter of the planted features, of every kind."""
    from mlxterp.auto_interp import auto_label_features

    return auto_label_features(
        model, sae, store=store, feature_ids=range(0, sae.d_sae, 4), llm=None, sampling=Sampling()
    )

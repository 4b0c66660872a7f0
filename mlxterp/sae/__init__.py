"""Sparse autoencoders: values, files, training, quality."""

from __future__ import annotations

from mlxterp.sae.analysis.activity import active_features
from mlxterp.sae.analysis.attribution import feature_attribution
from mlxterp.sae.analysis.circuits import feature_circuit
from mlxterp.sae.analysis.effects import feature_effects
from mlxterp.sae.analysis.examples import feature_examples
from mlxterp.sae.analysis.interventions import (
    feature_add,
    feature_clamp,
    feature_scale,
    feature_zero,
)
from mlxterp.sae.bundled import bundled_sae
from mlxterp.sae.config import SAEConfig
from mlxterp.sae.evaluation import Recovery, absorption, fvu, reconstruction_quality, recovery, sae_quality
from mlxterp.sae.feature_store.build import build_store, cached_store, store_from_arrays
from mlxterp.sae.feature_store.store import FeatureStore, load_store
from mlxterp.sae.formats import load_sae, save_sae
from mlxterp.sae.registry import AvailableSAE, available, load_named
from mlxterp.sae.sae import SAE, Activation, JumpRelu, Relu, TopK
from mlxterp.sae.training.activations import StreamedActivations, cached_activations
from mlxterp.sae.training.source import ActivationSource, ArrayActivations
from mlxterp.sae.training.train import Trained, TrainingProgress, train_sae, train_saes

__all__ = [
    "SAE",
    "Activation",
    "ActivationSource",
    "ArrayActivations",
    "AvailableSAE",
    "FeatureStore",
    "JumpRelu",
    "Recovery",
    "Relu",
    "SAEConfig",
    "StreamedActivations",
    "TopK",
    "Trained",
    "TrainingProgress",
    "absorption",
    "active_features",
    "available",
    "build_store",
    "bundled_sae",
    "cached_activations",
    "cached_store",
    "feature_add",
    "feature_attribution",
    "feature_circuit",
    "feature_clamp",
    "feature_effects",
    "feature_examples",
    "feature_scale",
    "feature_zero",
    "fvu",
    "load_named",
    "load_sae",
    "load_store",
    "reconstruction_quality",
    "recovery",
    "sae_quality",
    "save_sae",
    "store_from_arrays",
    "train_sae",
    "train_saes",
]

"""Sparse autoencoders: values, files, training, quality."""

from __future__ import annotations

from mlxterp.sae.activations import StreamedActivations, cached_activations
from mlxterp.sae.activity import active_features
from mlxterp.sae.attribution import feature_attribution
from mlxterp.sae.bundled import bundled_sae
from mlxterp.sae.circuits import feature_circuit
from mlxterp.sae.config import SAEConfig
from mlxterp.sae.effects import feature_effects
from mlxterp.sae.examples import feature_examples
from mlxterp.sae.feature_store import FeatureStore, load_store
from mlxterp.sae.formats import load_sae, save_sae
from mlxterp.sae.interventions import feature_add, feature_clamp, feature_scale, feature_zero
from mlxterp.sae.quality import fvu, reconstruction_quality, sae_quality
from mlxterp.sae.sae import SAE, Activation, JumpRelu, Relu, TopK
from mlxterp.sae.source import ActivationSource, ArrayActivations
from mlxterp.sae.store import build_store, cached_store
from mlxterp.sae.store_arrays import store_from_arrays
from mlxterp.sae.training import Trained, train_sae, train_saes
from mlxterp.sae.training_progress import TrainingProgress
from mlxterp.sae.truth import Recovery, absorption, recovery

__all__ = [
    "SAE",
    "Activation",
    "ActivationSource",
    "ArrayActivations",
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

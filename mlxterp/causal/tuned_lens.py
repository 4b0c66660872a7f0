"""The tuned lens: an affine translator per layer, before the logit lens reads it (Belrose et al. 2023).

What lives here: the translators as a value, files of them, reading with them. What doesn't: training them
(`tuned_lens_training.py`), how a layer is decoded (`lens.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import mlx.core as mx

from mlxterp.causal.logit_lens import read_layers
from mlxterp.causal.prompts.encoding import Prompt
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LensError
from mlxterp.results import LogitLensResult

Loaded: TypeAlias = tuple[dict[str, mx.array], dict[str, Any]]

SCHEMA = "mlxterp-tuned-lens/1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of a model's residual streams: h ↦ h + h·A + b, one for each layer but the last.

    Attributes:
        a: [n_layers − 1, d_model, d_model]; zeros are the identity, with which a layer is read as by the
            logit lens, bit for bit.
        b: [n_layers − 1, d_model].
        model, digest: the name of the model and of its weights.
        training: what it was trained on and how: plain values.
        held_out_kl, logit_lens_kl: [n_layers], mean KL(model ‖ lens) in nats at positions of texts that were
            not trained on, with the translators and without; empty for a lens that was not trained.
    """

    a: mx.array
    b: mx.array
    model: str
    digest: str
    training: Mapping[str, Any] = field(default_factory=dict)
    held_out_kl: tuple[float, ...] = ()
    logit_lens_kl: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.a.ndim != 3 or self.a.shape[1] != self.a.shape[2] or self.b.shape != self.a.shape[:2]:
            raise LensError(
                f"translators of shapes {self.a.shape} and {self.b.shape}; they are "
                "[n_layers − 1, d_model, d_model] and [n_layers − 1, d_model]."
            )

    def translated(self, layer: int, h: mx.array) -> mx.array:
        """What the final norm reads in place of this layer's resid_post [..., d_model]; the last layer's is
        itself."""
        if layer == len(self.a):
            return h
        x = h.astype(mx.float32)
        return (x + x @ self.a[layer] + self.b[layer]).astype(h.dtype)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file with everything a lens holds."""
        facts = {
            "schema": SCHEMA,
            "model": self.model,
            "digest": self.digest,
            "training": dict(self.training),
            "held_out_kl": list(self.held_out_kl),
            "logit_lens_kl": list(self.logit_lens_kl),
        }
        mx.save_safetensors(str(path), {"a": self.a, "b": self.b}, metadata={"mlxterp": json.dumps(facts)})


def load_tuned_lens(path: str | Path) -> TunedLens:
    """A lens as `TunedLens.save` wrote it.

    Raises:
        LensError: the file is none.
    """
    try:
        arrays, metadata = cast("Loaded", mx.load(str(path), format="safetensors", return_metadata=True))
        facts = json.loads(metadata["mlxterp"])
        if facts["schema"] != SCHEMA:
            raise KeyError(facts["schema"])
        a, b = arrays["a"], arrays["b"]
    except (RuntimeError, ValueError, KeyError, TypeError) as problem:
        raise LensError(
            f"{path} holds no tuned lens of the form {SCHEMA}: {problem}. Write one with `lens.save(path)`."
        ) from problem
    return TunedLens(
        a,
        b,
        facts["model"],
        facts["digest"],
        facts["training"],
        tuple(facts["held_out_kl"]),
        tuple(facts["logit_lens_kl"]),
    )


def identity_lens(model: InterpretableModel) -> TunedLens:
    """Translators that change nothing: with them the tuned lens is the logit lens."""
    n, d = model.n_layers - 1, model.d_model
    return TunedLens(mx.zeros((n, d, d)), mx.zeros((n, d)), model.name, model.digest)


def tuned_lens(
    model: InterpretableModel,
    text: Prompt,
    lens: TunedLens,
    *,
    positions: Sequence[int] | None = None,
    answer: str | int | None = None,
    k: int = 5,
) -> LogitLensResult:
    """What each layer would predict, its resid_post translated before final norm and unembedding.

    Arguments, result and cost as for `logit_lens`; `measured_on` says how the lens was trained.

    Raises:
        LensError: the lens belongs to other weights.
        and what `logit_lens` raises.

    Source: Belrose et al. 2023 (2303.08112), "Eliciting Latent Predictions from Transformers with the Tuned
    Lens". A translator is trained to agree with the output, so it may compute what the model has not yet: an
    answer found here is decodable from the layer, not shown to be used.
    """
    if lens.digest != model.digest:
        raise LensError(
            f"the lens was trained on weights {lens.digest[:12]} of {lens.model}; {model.name} has "
            f"{model.digest[:12]}. Train one with train_tuned_lens(model, texts)."
        )
    return read_layers(
        model,
        text,
        lens.translated,
        positions=positions,
        answer=answer,
        k=k,
        lens="tuned lens",
        facts={
            "read": "resid_post of each layer, its translator, the model's final norm and unembedding",
            "training": dict(lens.training),
        },
    )

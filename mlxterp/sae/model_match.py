"""Whether the model in use is the one an SAE was trained on, by the facts in the SAE's file.

What a difference does depends on the model, so it is a warning that names the field, not an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SAEMismatch
from mlxterp.sae.sae import SAE

# What TransformerLens can do to a model's weights without changing an activation that an SAE reads: whatever
# these are set to makes no difference here. `center_writing_weights=False` leaves the model as it is.
_WITHOUT_EFFECT = (
    "fold_ln",
    "center_unembed",
    "fold_value_biases",
    "device",
    "n_devices",
    "dtype",
    "torch_dtype",
)
_AS_LOADED: dict[str, Any] = {"center_writing_weights": False, "revision": None, "checkpoint_index": None}
_VARIANT = re.compile(r"[-_](\d+bit|bf16|fp16|float16|float32|bfloat16|mlx|hf|pt(?=$)|small(?=$))")
"""Endings of names under which the same weights are published; GPT-2's smallest is "gpt2" and
"gpt2-small"."""
_GENERATION = re.compile(r"^gemma-(?=\d)")
"""Gemma 3 is "gemma-3-270m" and "gemma3-270m"."""


def warn_of_mismatch(model: InterpretableModel, sae: SAE) -> None:
    """Warns with SAEMismatch for each fact in the SAE's file that the model in use does not share.

    Compared are the model's name (without the owner, and endings such as "-4bit"), SAELens's `prepend_bos`,
    and its `model_from_pretrained_kwargs`. A model that was passed as a module has no name to compare.
    """
    for text in mismatches(model, sae):
        advice = "Features may mean something else there than in training: use the SAE with its own model."
        warnings.warn(f"{text} {advice}", SAEMismatch, stacklevel=3)


def mismatches(model: InterpretableModel, sae: SAE) -> list[str]:
    """A sentence for each difference, naming the field."""
    found = []
    if model.loaded_by_name and sae.model != "unknown" and _plain(sae.model) != _plain(model.name):
        found.append(f"model: this SAE was trained on {sae.model!r}, and the model in use is {model.name!r}.")
    stated = _stated(sae.metadata)
    prepends = stated.get("prepend_bos")
    if prepends is not None and model.tokenizer is not None and bool(prepends) != _begins_with_bos(model):
        found.append(
            f"prepend_bos: this SAE was trained with prepend_bos = {bool(prepends)}, and {model.name}'s "
            f"tokenizer {'begins' if _begins_with_bos(model) else 'does not begin'} a text with such a token."
        )
    options = stated.get("model_from_pretrained_kwargs") or {}
    differ = {
        name: value
        for name, value in options.items()
        if name not in _WITHOUT_EFFECT and (name not in _AS_LOADED or value != _AS_LOADED[name])
    }
    if differ:
        found.append(
            f"model_from_pretrained_kwargs: this SAE was trained on a model loaded with {differ}, and "
            f"{model.name} is used as its weights are."
        )
    return found


def _stated(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """SAELens's facts of the training: in `metadata` of cfg.json since version 6, beside it before."""
    config = metadata.get("config") or {}
    return {**config, **(config.get("metadata") or {})}


def _plain(name: str) -> str:
    plain, changed = name.rpartition("/")[2].casefold(), 1
    while changed:
        plain, changed = _VARIANT.subn("", plain)
    return _GENERATION.sub("gemma", plain)


def _begins_with_bos(model: InterpretableModel) -> bool:
    bos = model.bos_token_id
    return bos is not None and int(np.asarray(model.to_tokens("a"))[0, 0]) == bos

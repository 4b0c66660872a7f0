"""The user's guide as a program: its blocks in one namespace, with what it leaves to the reader filled in.

`tests/data/guide.md` is the guide, word for word; it has no fences, so `guide_blocks.json` says which lines
are code. Lives here: reading the blocks, running them, models and an SAE to run them on. Does not live here:
what must hold after each block (`test_guide.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from mlxterp.causal import PromptPair, acdc, activation_patching, all_edges, direct_logit_attribution
from mlxterp.core.model import InterpretableModel
from mlxterp.sae import SAE, JumpRelu
from tests.tiny_models import tiny_module

DATA = Path(__file__).resolve().parent / "data"
GUIDE = (DATA / "guide.md").read_text(encoding="utf-8")
LAYER, FEATURE = 10, 42
D_SAE = 64


@dataclass(frozen=True)
class Block:
    """Lines of the guide that are code; `first` and `last` count from 1."""

    name: str
    first: int
    last: int

    @property
    def source(self) -> str:
        """At the guide's own line numbers, so that a failure points there."""
        lines = GUIDE.splitlines()[self.first - 1 : self.last]
        return "\n" * (self.first - 1) + "\n".join(lines) + "\n"


BLOCKS = tuple(Block(**each) for each in json.loads((DATA / "guide_blocks.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Ran:
    """What a block left behind: its names, and what it printed."""

    names: Mapping[str, Any]
    printed: str


def run(block: Block, names: dict[str, Any]) -> Ran:
    """Runs one block in `names`, in the current directory."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.source, str(DATA / "guide.md"), "exec"), names)
    return Ran(dict(names), out.getvalue())


def filled_in(
    model: InterpretableModel, pair: PromptPair, texts: Sequence[str], validation: Sequence[str]
) -> dict[str, Any]:
    """The names that the guide uses and does not define."""
    answer, foil = 3, 5

    def my_logit_diff_fn(logits):
        return logits[:, answer] - logits[:, foil]

    def my_prob_fn(logits):
        return np.exp(logits[:, answer]) / np.exp(logits).sum(axis=1)

    patching = activation_patching(model, pair, component="mlp")
    into_logits = [edge for edge in all_edges(model) if edge.into == "logits"]
    return {
        "model": model,
        "sae": token_sae(model, texts),
        "clean": pair.clean,
        "corrupted": pair.corrupted,
        "dataset_texts": list(texts),
        "validation_texts": list(validation),
        "my_logit_diff_fn": my_logit_diff_fn,
        "my_prob_fn": my_prob_fn,
        "patching_result": patching,
        "dla_result": direct_logit_attribution(model, pair.clean),
        "circuit_result": acdc(model, pair, threshold=0.05, candidates=into_logits),
        "results": [patching, direct_logit_attribution(model, pair.clean)],
    }


def token_sae(model: InterpretableModel, texts: Sequence[str]) -> SAE:
    """A tiny SAE at the guide's layer whose features each fire on one token: a ridge regression of what the
    token is on the residual stream there, and a threshold in the middle. Feature 42 is one of them."""
    streams, ids = [], []
    for text in texts:
        trace = model.trace(text, capture=f"L{LAYER}.resid_post")
        streams.append(np.array(trace[f"L{LAYER}.resid_post"].astype(mx.float32))[0, 1:])
        ids.append(np.array(model.to_tokens(text)).reshape(-1)[1:])
    x, tokens = np.concatenate(streams).astype(np.float64), np.concatenate(ids)
    kinds, counts = np.unique(tokens, return_counts=True)
    share = counts / len(tokens)
    words = [model.to_str_tokens([int(kind)])[0].strip() for kind in kinds]
    length = [min(len(word), 5) if word.isalpha() else 0 for word in words]  # whole words rather than pieces
    often = [i for i in np.argsort(-share, kind="stable") if share[i] < 0.08]
    order = [*sorted(often, key=lambda i: -length[i])[: D_SAE // 2], *often[:8]]  # and what is in any text
    order = list(dict.fromkeys(order))
    chosen = [FEATURE, *(f for f in range(D_SAE) if f != FEATURE)][: len(order)]
    mean, scale = x.mean(axis=0), x.std()
    centred = (x - mean) / scale
    targets = (tokens[:, None] == kinds[order][None]).astype(np.float64)
    weights = np.linalg.solve(
        centred.T @ centred + 1e-2 * len(x) * np.eye(x.shape[1]) / x.shape[1], centred.T @ targets
    )
    scores = centred @ weights
    middle = np.array(
        [(scores[hit, j].mean() + scores[~hit, j].mean()) / 2 for j, hit in enumerate(targets.T > 0)]
    )
    encoder, bias = np.zeros((x.shape[1], D_SAE)), np.full(D_SAE, -1.0)
    encoder[:, chosen] = weights / scale
    bias[chosen] = 0.5 - middle - mean @ weights / scale
    decoder = np.random.default_rng(0).normal(size=(D_SAE, x.shape[1]))
    decoder[chosen] = np.stack([x[tokens == kinds[i]].mean(axis=0) - mean for i in order])
    return SAE(
        W_enc=mx.array(encoder.astype(np.float32)),
        b_enc=mx.array(bias.astype(np.float32)),
        W_dec=mx.array(decoder.astype(np.float32)),
        b_dec=mx.array(mean.astype(np.float32)),
        activation=JumpRelu(mx.full(D_SAE, 0.5)),
        hook_point=f"L{LAYER}.resid_post",
        model=model.name,
        subtract_b_dec=False,
        metadata={},
    )


def guide_module(sharpness: float, *, damping: float = 0.15, tied: bool = False, **sizes: Any) -> nn.Module:
    """A random llama of eleven layers that still knows at layer 10 which token it stands on, and whose last
    layers look back: what blocks write is small beside the embedding.

    Args:
        sharpness: a factor of the logits: how far apart the next-token distributions of two prompts are.
        damping: a factor of what blocks write. tied: whether the unembedding is the embedding.
    """
    module = tiny_module("llama", **{"num_hidden_layers": 11, "tie_word_embeddings": tied} | sizes)
    last = "model.norm" if tied else "lm_head"

    def scaled(path: str, weight: mx.array) -> mx.array:
        if path.endswith(("o_proj.weight", "down_proj.weight")):
            return damping * weight
        return sharpness * weight if path.startswith(last) else weight

    module.update(tree_map_with_path(scaled, module.parameters()))
    mx.eval(module.parameters())
    return module

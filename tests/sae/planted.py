"""A model written by hand whose features, and the edges between them, are known; and SAEs that see them.

Two blocks, no norms. The first MLP turns a token into up to four features, the second turns each of these
into another one, `a` into `a'` and so on. The unembedding of token YES reads `a'` and `b'` and, weakly, one
direction that no feature explains; it reads nothing of `c'` and `d'`. All in a rotated basis. Attention does
nothing, so that only the last position matters to the prediction there.
"""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.models.attention import scaled_dot_product_attention
from mlxterp.sae import SAE, JumpRelu, Relu, TopK

NOTHING, ALL, ONLY_A, ONLY_C, YES, NO = range(6)
VOCAB, D, HIDDEN = 6, 16, 4
A, B, C, DD, DEAD = range(5)
"""Features of both SAEs; the fifth never fires."""

FIRST = {NOTHING: (0, 0, 0, 0), ALL: (2.0, 1.5, 2.0, 1.0), ONLY_A: (2.0, 0, 0, 0), ONLY_C: (0, 0, 2.0, 0)}
"""What each token makes of a, b, c, d."""
SECOND = (1.5, 2.0, 1.0, 3.0)
"""The factor from a to a' and so on."""
READ = (3.0, 1.0, 0.0, 0.0)
"""How much the logit of YES reads of a', b', c', d'."""
UNEXPLAINED = 0.5
"""How much it reads of the direction in which every token is 1, which is in the errors only."""

ROTATION = np.linalg.qr(np.random.default_rng(7).normal(size=(D, D)))[0]
TOKENS, UPPER, LOWER, COMMON = slice(0, 6), slice(6, 10), slice(10, 14), 14


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads = self.n_kv_heads = 2
        self.scale = 1.0
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(D, D, bias=False))

    def __call__(self, x, mask=None, cache=None):
        batch, pos, _ = x.shape
        q, k, v = (
            p(x).reshape(batch, pos, 2, -1).transpose(0, 2, 1, 3)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        z = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.scale, mask=mask)
        return self.o_proj(z.transpose(0, 2, 1, 3).reshape(batch, pos, -1))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(D, HIDDEN, bias=False), nn.Linear(HIDDEN, D, bias=False)

    def __call__(self, x):
        return self.down_proj(nn.relu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()

    def __call__(self, x, mask=None, cache=None):
        x = x + self.self_attn(x, mask, cache)
        return x + self.mlp(x)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, D)
        self.layers = [Block(), Block()]

    def __call__(self, tokens, cache=None):
        x = self.embed_tokens(tokens)
        for block, own in zip(self.layers, cache or [None, None], strict=True):
            x = block(x, "causal" if x.shape[1] > 1 else None, own)
        return x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.args = SimpleNamespace(model_type="planted", num_hidden_layers=2)
        self.model, self.lm_head = Body(), nn.Linear(D, VOCAB, bias=False)

    @property
    def layers(self):
        return self.model.layers

    def __call__(self, tokens, cache=None):
        return self.lm_head(self.model(tokens, cache))


def weights() -> dict[str, np.ndarray]:
    """Every matrix in the unrotated basis, acting on columns."""
    embed = np.zeros((VOCAB, D))
    embed[:, TOKENS], embed[:, COMMON] = np.eye(VOCAB), 1.0
    up = [np.zeros((HIDDEN, D)), np.zeros((HIDDEN, D))]
    for token, features in FIRST.items():
        up[0][:, token] = features
    up[1][:, UPPER] = np.diag(SECOND)
    down = [np.zeros((D, HIDDEN)), np.zeros((D, HIDDEN))]
    down[0][UPPER], down[1][LOWER] = np.eye(4), np.eye(4)
    head = np.zeros((VOCAB, D))
    head[YES, LOWER], head[YES, COMMON] = READ, UNEXPLAINED
    return {"embed": embed, "up0": up[0], "up1": up[1], "down0": down[0], "down1": down[1], "head": head}


def planted_model() -> InterpretableModel:
    """The model; prompts are token ids."""
    module, w = Model(), {name: np.asarray(value) for name, value in weights().items()}
    rotated = {
        "model.embed_tokens.weight": w["embed"] @ ROTATION.T,
        "lm_head.weight": w["head"] @ ROTATION.T,
    }
    for layer in (0, 1):
        rotated[f"model.layers.{layer}.mlp.up_proj.weight"] = w[f"up{layer}"] @ ROTATION.T
        rotated[f"model.layers.{layer}.mlp.down_proj.weight"] = ROTATION @ w[f"down{layer}"]
        for name in "qkvo":
            rotated[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = np.zeros((D, D))
    module.load_weights([(name, mx.array(value.astype(np.float32))) for name, value in rotated.items()])
    return InterpretableModel(module)


def planted_sae(layer: int, *, scale: float = 1.0) -> SAE:
    """Features a, b, c, d (in layer 1 a', b', c', d') and one that never fires; activations times `scale`."""
    part = UPPER if layer == 0 else LOWER
    rows = np.concatenate([np.eye(D)[part], np.eye(D)[[15]]]) @ ROTATION.T
    return SAE(
        W_enc=mx.array((scale * rows.T).astype(np.float32)),
        b_enc=mx.array(np.array([0, 0, 0, 0, -5.0 * scale], dtype=np.float32)),
        W_dec=mx.array((rows / scale).astype(np.float32)),
        b_dec=mx.zeros(D),
        activation=JumpRelu(mx.full(5, 1e-3 * scale)),  # rounding is no firing
        hook_point=f"L{layer}.resid_post",
        model="planted",
    )


def logit_diff(token: int, *, first=(1, 1, 1, 1), second=(1, 1, 1, 1), errors=(1, 1)) -> float:
    """The logit of YES minus that of NO behind a token, with features and errors of either layer kept (1) or
    ablated to zero (0); computed by hand. The second layer's features are those the first one's make."""
    upper = np.array(FIRST[token]) * first
    lower = np.array(SECOND) * upper * second
    return float(np.array(READ) @ lower + UNEXPLAINED * errors[0] * errors[1])


def random_sae(
    point: str, *, width: int = 32, d_sae: int = 48, k: int | None = 8, seed: int = 0, bias: float = 0.0
) -> SAE:
    """Random unit directions and a decoder bias; TopK, or ReLU for k=None."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(d_sae, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return SAE(
        W_enc=mx.array(rows.T.astype(np.float32)),
        b_enc=mx.full(d_sae, bias),
        W_dec=mx.array(rows.astype(np.float32)),
        b_dec=mx.array(0.1 * rng.normal(size=width).astype(np.float32)),
        activation=Relu() if k is None else TopK(k),
        hook_point=point,
        model="tiny",
    )

"""The QK fix of AtP*: queries and keys go through the softmax exactly, and on from the pattern by a gradient.

Where attention is saturated the softmax has no slope, so a gradient at q or k misses that another query would
attend elsewhere (Kramár et al. 2024, 2403.00745).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxterp.core.architecture import attention
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import renamed
from mlxterp.errors import CapabilityUnavailable


@dataclass(frozen=True, eq=False)
class Scores:
    """How a layer turns queries and keys [batch, pos, head, d_head] into attention probabilities."""

    scale: float
    mask: mx.array | str | None
    sinks: mx.array | None

    def pattern(self, q: mx.array, k: mx.array) -> mx.array:
        """[batch, head, dest, src]."""
        q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
        found = attention.pattern(q, k, scale=self.scale, mask=self.mask, sinks=self.sinks)
        return found.astype(mx.float32)


@contextmanager
def record_scores(model: InterpretableModel) -> Iterator[list[Scores]]:
    """A list that fills with each layer's scores, in order, while the model runs with no pattern edited."""
    recorded: list[Scores] = []
    namespaces: list[dict[str, Any]] = []
    for layer in model.architecture.layers:
        if attention.NAME not in layer.namespace:
            raise CapabilityUnavailable(
                f"{model.name}: its attention computes its softmax in place, after a cap that only it knows, "
                "so it cannot be recomputed with other queries or keys. Leave qk_fix out."
            )
        if not any(layer.namespace is known for known in namespaces):
            namespaces.append(layer.namespace)

    def stand_in(original: Any) -> Any:
        def attend(
            queries: mx.array,
            keys: mx.array,
            values: mx.array,
            cache: Any = None,
            scale: float = 1.0,
            mask: mx.array | str | None = None,
            **rest: Any,
        ) -> Any:
            recorded.append(Scores(scale, mask, rest.get("sinks")))
            return original(queries, keys, values, cache, scale=scale, mask=mask, **rest)

        return attend

    with renamed(attention.NAME, [(names, stand_in(names[attention.NAME])) for names in namespaces]):
        yield recorded


def one_key_each(
    scores: Scores, q: mx.array, k: mx.array, other: mx.array, positions: Sequence[int]
) -> tuple[mx.array, mx.array]:
    """What replacing one key alone does to the pattern, for each of `positions`, without a softmax for each.

    With p the probabilities, δ the change of one score and Z = 1 + p_s (e^δ − 1), the new row is
    p'_s = p_s e^δ / Z and p'_j = p_j / Z. So Σ_j (p'_j − p_j) G_j = w (G_s − Σ_j p_j G_j), w = (Z − 1) / Z.

    Args:
        q, k: of the base run, `[batch, pos, head, d_head]`.
        other: the keys to put in, `[batch, len(positions), head, d_head]`.

    Returns:
        p `[batch, n_heads, dest, src]` and w `[batch, n_heads, dest, len(positions)]`.
    """
    p = scores.pattern(q, k)
    index = mx.array(list(positions))
    change = (other - mx.take(k, index, axis=1)).astype(mx.float32)
    group = q.shape[2] // k.shape[2]
    change = mx.repeat(change, group, axis=2)
    delta = scores.scale * mx.einsum("bthd,bshd->bhts", q.astype(mx.float32), change)
    # p e^δ as one exponential: a probability of 1e-40 whose score grows by 100 must not become 0 · ∞.
    own = mx.take(p, index, axis=-1)
    grown = mx.exp(mx.minimum(mx.take(_log(scores, q, k, p), index, axis=-1) + delta, 60.0))
    return p, (grown - own) / (1.0 - own + grown)


def _log(scores: Scores, q: mx.array, k: mx.array, p: mx.array) -> mx.array:
    """log p, also where p is too small for float32; −inf where the mask hides a key."""
    group = q.shape[2] // k.shape[2]
    keys = mx.repeat(k.astype(mx.float32), group, axis=2)
    products = scores.scale * mx.einsum("bthd,bshd->bhts", q.astype(mx.float32), keys)
    # Queries of zero leave the mask alone: what it adds to each score, up to a constant per row.
    masks = mx.log(Scores(scores.scale, scores.mask, None).pattern(mx.zeros_like(q), k))
    raw = products + masks
    largest = mx.argmax(p, axis=-1, keepdims=True)
    known = mx.log(mx.take_along_axis(p, largest, axis=-1)) - mx.take_along_axis(raw, largest, axis=-1)
    return raw + known

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.core.architecture.attention import attend, pattern
from mlxterp.models.attention import scaled_dot_product_attention

BATCH, HEADS, KV, DEST, SRC, WIDTH = 2, 6, 2, 4, 7, 8


def draw(seed: int, *shape: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


QUERIES = draw(0, BATCH, HEADS, DEST, WIDTH)
KEYS, VALUES = draw(1, BATCH, KV, SRC, WIDTH), draw(2, BATCH, KV, SRC, WIDTH)
BOOLEAN = mx.arange(SRC)[None] <= mx.arange(DEST)[:, None] + 2
MASKS = {
    "none": None,
    "causal": "causal",
    "boolean": BOOLEAN,
    "per row": mx.stack([BOOLEAN, mx.ones((DEST, SRC), dtype=mx.bool_)])[:, None],
    "added": mx.where(BOOLEAN, 0.3, -1e9),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("sinks", [None, draw(3, HEADS)], ids=["no sinks", "sinks"])
def test_the_written_out_pattern_times_v_is_the_fused_attention(mask, sinks):
    fused = scaled_dot_product_attention(QUERIES, KEYS, VALUES, scale=0.3, mask=mask, sinks=sinks)

    written = attend(pattern(QUERIES, KEYS, scale=0.3, mask=mask, sinks=sinks), VALUES)

    np.testing.assert_allclose(np.array(written), np.array(fused), atol=1e-5)


def test_query_heads_share_the_key_head_of_their_group():
    scores = np.array(pattern(QUERIES, KEYS, scale=0.3, mask=None))

    own = np.einsum("d,sd->s", np.array(QUERIES[1, 4, 2]), np.array(KEYS[1, 4 // (HEADS // KV)])) * 0.3
    np.testing.assert_allclose(scores[1, 4, 2], np.exp(own) / np.exp(own).sum(), rtol=1e-5)


def test_a_sink_takes_its_share_of_the_probability():
    rows = np.array(pattern(QUERIES, KEYS, scale=0.3, mask=None, sinks=mx.zeros(HEADS))).sum(-1)

    assert np.all(rows < 1)
    assert np.all(rows > 0)

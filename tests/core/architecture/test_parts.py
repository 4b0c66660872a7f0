import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.component_names import LAYER_NAMES
from mlxterp.core import interventions as iv
from mlxterp.core.architecture.families import COMMON, Family
from mlxterp.core.architecture.norms import read_norm
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, UnsupportedArchitecture
from mlxterp.models.attention import scaled_dot_product_attention
from tests.core.conftest import close
from tests.tiny_models import PARALLEL, ByteTokenizer, tiny_module

TEXT = "The cat sat"


def by_hand(model, text: str, *, new_mid: tuple[int, mx.array] | None = None) -> dict[str, mx.array]:
    """Every hook point of a llama, from its weights, by the formulas of the hook points' page."""
    module = model.model
    seen: dict[str, mx.array] = {}
    h = module.model.embed_tokens(mx.array(model.to_tokens(text)))
    n = h.shape[1]
    causal = mx.where(mx.tri(n, dtype=mx.bool_), 0.0, -mx.inf)

    def heads(x, count):
        return x.reshape(1, n, count, 8)

    for i, block in enumerate(module.model.layers):
        attn = block.self_attn
        normed = block.input_layernorm(h)
        rope = lambda x, attn=attn: attn.rope(x.swapaxes(1, 2)).swapaxes(1, 2)  # noqa: E731
        q, k = rope(heads(attn.q_proj(normed), 4)), rope(heads(attn.k_proj(normed), 2))
        v = heads(attn.v_proj(normed), 2)
        scores = mx.stack([q[0, :, j] @ k[0, :, j // 2].T for j in range(4)])[None] * 8**-0.5 + causal
        pattern = mx.softmax(scores, axis=-1)
        z = mx.stack([pattern[0, j] @ v[0, :, j // 2] for j in range(4)], axis=1)[None]
        attn_out = attn.o_proj(z.reshape(1, n, -1))
        mid = h + attn_out
        if new_mid is not None and new_mid[0] == i:
            mid = new_mid[1]
        mlp_out = block.mlp(block.post_attention_layernorm(mid))
        values = (h, q, k, v, pattern, z, attn_out, mid, mlp_out, mid + mlp_out)
        seen |= {f"L{i}.{name}": value for name, value in zip(LAYER_NAMES, values, strict=True)}
        h = mid + mlp_out
    seen["final_norm"] = module.model.norm(h)
    seen["logits"] = module.lm_head(seen["final_norm"])
    return seen


def test_every_hook_point_equals_a_hand_written_forward(tiny_llama):
    expected = by_hand(tiny_llama, TEXT)

    t = tiny_llama.trace(TEXT, capture=list(expected))

    assert [name for name in expected if not close(t[name], expected[name])] == []


def test_writing_resid_mid_equals_a_hand_written_forward(tiny_llama):
    new = mx.random.normal((1, len(TEXT), 32), key=mx.random.key(5))

    written = tiny_llama.logits(TEXT, interventions=[iv.replace("L1.resid_mid", new)])

    assert close(written, by_hand(tiny_llama, TEXT, new_mid=(1, new))["logits"])


def test_a_family_with_a_wrong_entry_loses_what_the_entry_spoils_and_says_so():
    wrong = InterpretableModel(tiny_module("gemma2"), ByteTokenizer(), family=COMMON)

    lost = {name for name, c in wrong.capabilities.items() if not c.available}
    assert {"attn_out", "mlp_out", "resid_mid", "head_outputs", "unembedding"} <= lost
    assert wrong.capabilities["resid_pre"].available
    with pytest.raises(CapabilityUnavailable, match=r"resid_pre \+ attn_out \+ mlp_out is not resid_post"):
        wrong.trace(TEXT, capture=["L0.attn_out"])


def test_a_wrong_scale_of_the_logits_is_noticed():
    wrong = Family(logit_scale=lambda _: 2.0)

    model = InterpretableModel(tiny_module("llama"), ByteTokenizer(), family=wrong)

    assert not model.capabilities["unembedding"].available
    with pytest.raises(CapabilityUnavailable, match="do not give its own logits"):
        model.unembedding([1])


@pytest.mark.parametrize("family", PARALLEL)
def test_a_parallel_block_is_found_without_being_declared(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())

    assert "in parallel" in model.capabilities["resid_mid"].reason


def test_a_sequential_gpt_neox_has_resid_mid():
    model = InterpretableModel(tiny_module("gpt_neox", use_parallel_residual=False), ByteTokenizer())

    assert model.capabilities["resid_mid"].available


def test_without_verification_nothing_is_switched_off_by_a_check():
    model = InterpretableModel(tiny_module("llama"), family=Family(logit_scale=lambda _: 2.0), verify=False)

    assert model.capabilities["unembedding"].available


class AttentionOnlyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = OneAttention()

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.attn(x)


class OneAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads = 2
        self.qkv = nn.Linear(8, 24, bias=False)
        self.out_proj = nn.Linear(8, 8, bias=True)

    def __call__(self, x: mx.array) -> mx.array:
        batch, n, _ = x.shape
        q, k, v = (p.reshape(batch, n, 2, 4).swapaxes(1, 2) for p in mx.split(self.qkv(x), 3, axis=-1))
        z = scaled_dot_product_attention(q, k, v, scale=0.5, mask="causal")
        return self.out_proj(z.swapaxes(1, 2).reshape(batch, n, 8))


class AttentionOnly(nn.Module):
    """No MLP, no norm, no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 8)
        self.layers = [AttentionOnlyBlock(), AttentionOnlyBlock()]
        self.unembed = nn.Linear(8, 10, bias=True)

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.embed_tokens(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.unembed(h)


def test_a_model_without_mlp_and_norm_has_everything_else():
    model = InterpretableModel(AttentionOnly())

    missing = {name for name, c in model.capabilities.items() if not c.available}
    assert missing == {"mlp_out", "resid_mid", "final_norm"}
    with pytest.raises(CapabilityUnavailable, match="no MLP"):
        model.trace([1, 2], capture=["L0.mlp_out"])


def test_without_a_norm_logits_are_plainly_linear_in_the_stream():
    model = InterpretableModel(AttentionOnly())
    t = model.trace([1, 2, 3], capture=["L1.resid_post"])

    directions, constants = model.architecture.logit_directions(mx.array([4]))

    assert mx.array_equal(model.architecture.norm_scale(t["L1.resid_post"]), mx.ones((1, 3, 1)))
    assert close(t["L1.resid_post"] @ directions.T + constants, t.logits[..., 4:5])


class HalvedLogits(AttentionOnly):
    def __call__(self, tokens: mx.array) -> mx.array:
        return 0.5 * super().__call__(tokens)


def test_a_scale_of_the_logits_is_also_that_of_the_unembeddings_bias():
    model = InterpretableModel(HalvedLogits(), family=Family(logit_scale=lambda _: 0.5))
    t = model.trace([1, 2, 3], capture=["L1.resid_post"])

    directions, constants = model.architecture.logit_directions(mx.array([4]))

    assert close(t["L1.resid_post"] @ directions.T + constants, t.logits[..., 4:5])


class InPlaceBlock(AttentionOnlyBlock):
    def __call__(self, x: mx.array) -> mx.array:
        x += self.attn(x)
        return x


def test_a_captured_activation_is_not_changed_by_a_block_that_works_in_place():
    module = AttentionOnly()
    module.layers = [InPlaceBlock(), InPlaceBlock()]
    t = InterpretableModel(module).trace([1, 2, 3], capture=["resid_pre", "attn_out", "resid_post"])

    assert close(t["L0.resid_pre"], module.embed_tokens(mx.array([[1, 2, 3]])))
    assert close(t["L0.resid_pre"] + t["L0.attn_out"], t["L0.resid_post"])


def test_without_a_cache_generation_reads_everything_again():
    model = InterpretableModel(AttentionOnly())

    made = model.generate([1, 2], max_new_tokens=3)

    tokens = [1, 2]
    for _ in range(3):
        tokens.append(int(mx.argmax(model.logits(tokens)[0, -1]).item()))
    assert list(made.tokens) == tokens[2:]


class Plain(nn.Module):
    """Blocks of plain linear layers, as in a toy of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.blocks = [PlainBlock() for _ in range(2)]

    def __call__(self, tokens: mx.array) -> mx.array:
        h = self.embedding(tokens)
        for block in self.blocks:
            h = block(h)
        return h


class PlainBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Linear(8, 8)
        self.mlp = nn.Linear(8, 8)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(x)
        return x + self.mlp(x)


def test_any_module_with_a_list_of_blocks_has_its_residual_stream_and_says_what_it_lacks():
    model = InterpretableModel(Plain())
    t = model.trace([1, 2], capture=["resid_pre", "attn_out", "resid_mid", "mlp_out", "blocks.1.mlp"])

    assert mx.array_equal(t["L1.mlp_out"], t["blocks.1.mlp"])
    assert close(t["L0.resid_pre"] + t["L0.attn_out"], t["L0.resid_mid"])
    with pytest.raises(CapabilityUnavailable, match=r"no output projection or no number of heads"):
        model.trace([1, 2], capture=["L0.z"])
    with pytest.raises(CapabilityUnavailable, match="do not give its own logits"):
        model.unembedding([0])


def test_a_module_without_a_list_of_blocks_is_refused_with_what_is_needed():
    with pytest.raises(UnsupportedArchitecture, match=r"self\.layers = \[\.\.\.\]"):
        InterpretableModel(nn.Linear(3, 3))


class ShiftedNorm(nn.Module):
    """Gemma's way of storing weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.random.normal((16,), key=mx.random.key(0))
        self.eps = 1e-4

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight, self.eps)


def layer_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(16, eps=1e-4)
    norm.weight, norm.bias = mx.random.normal((16,), key=mx.random.key(1)), mx.arange(16) / 10
    return norm


def rms_norm() -> nn.RMSNorm:
    norm = nn.RMSNorm(16, eps=1e-6)
    norm.weight = mx.random.normal((16,), key=mx.random.key(2))
    return norm


@pytest.mark.parametrize("make", [rms_norm, layer_norm, ShiftedNorm, lambda: nn.LayerNorm(16, affine=False)])
def test_a_norm_is_read_as_a_formula_that_computes_the_same(make):
    module = make()
    x = mx.random.normal((2, 3, 16), key=mx.random.key(9)) * 3 + 1

    norm = read_norm(module, 16)

    assert close(norm(x), module(x))


@pytest.mark.parametrize("make", [rms_norm, layer_norm, ShiftedNorm])
def test_folding_a_norm_into_directions_is_the_same_as_applying_it(make):
    norm = read_norm(make(), 16)
    x = mx.random.normal((5, 16), key=mx.random.key(9)) + 1
    directions = mx.random.normal((4, 16), key=mx.random.key(8))

    assert close(x @ norm.fold(directions).T, norm.linear(x) @ directions.T)


def test_a_norm_of_no_known_form_is_not_taken_for_one():
    class Odd(nn.Module):
        def __call__(self, x: mx.array) -> mx.array:
            return mx.tanh(x)

    assert read_norm(Odd(), 16) is None


def test_a_prologue_knows_the_masks_of_a_sliding_window():
    model = InterpretableModel(tiny_module("gemma3"), ByteTokenizer())
    tokens = mx.array(model.to_tokens(TEXT))
    prologue = model.architecture.prologue(tokens)

    windowed, whole = (prologue.calls[layer][0][0] for layer in (0, 1))

    assert isinstance(windowed, mx.array)
    assert windowed.shape[-2:] == (len(TEXT), len(TEXT))
    assert whole == "causal"


def test_a_sliding_window_is_seen_in_the_pattern():
    model = InterpretableModel(tiny_module("gemma3"), ByteTokenizer())
    t = model.trace(TEXT, capture=["pattern"])

    outside = np.tri(len(TEXT), k=-4, dtype=bool)
    assert np.all(np.array(t["L0.pattern"])[..., outside] == 0)
    assert np.array(t["L1.pattern"])[..., outside].sum() > 0


def test_norms_before_attention_are_seen_in_the_queries():
    model = InterpretableModel(tiny_module("qwen3"), ByteTokenizer())
    attn = model.model.model.layers[0].self_attn
    attn.q_norm.weight = mx.zeros(8)

    assert not np.any(np.array(model.trace(TEXT, capture="L0.q")["L0.q"]))

"""What must hold in every family, without any other implementation to compare with."""

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.component_names import GLOBAL_NAMES, LAYER_NAMES
from mlxterp.core import interventions as iv
from mlxterp.core.architecture.attention import attend
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable
from tests.core.conftest import close
from tests.tiny_models import FAMILIES, PARALLEL, POST_NORM, ByteTokenizer, tiny_module

TEXT, OTHER = "The cat sat", "A dog ran a"
ADDED = ("attn_out", "mlp_out")
LACKS = {family: {"resid_mid"} for family in PARALLEL}


def available(model) -> list[str]:
    return [name for name in (*LAYER_NAMES, *GLOBAL_NAMES) if model.capabilities[name].available]


def layers(model) -> range:
    return range(model.n_layers)


@pytest.mark.usefixtures("pinned_threads")
def test_capturing_everything_leaves_the_logits_bit_identical(any_family):
    plain = any_family.logits(TEXT)

    assert mx.array_equal(any_family.trace(TEXT, capture=available(any_family)).logits, plain)


@pytest.mark.usefixtures("pinned_threads")
def test_capturing_nothing_gives_what_the_module_itself_gives(any_family):
    tokens = mx.array(any_family.to_tokens(TEXT))

    own = any_family.architecture.forward(tokens)

    assert mx.array_equal(any_family.logits(TEXT), own)


def test_what_leaves_a_block_enters_the_next(any_family):
    t = any_family.trace(TEXT, capture=["resid_pre", "resid_post", "embed"])

    assert mx.array_equal(t["embed"], t["L0.resid_pre"])
    for layer in layers(any_family)[1:]:
        assert mx.array_equal(t[f"L{layer - 1}.resid_post"], t[f"L{layer}.resid_pre"])


def test_a_block_adds_its_attention_and_its_mlp_to_the_stream(any_family):
    t = any_family.trace(TEXT, capture=["resid_pre", *ADDED, "resid_post"])

    for n in layers(any_family):
        assert close(t[f"L{n}.resid_pre"] + t[f"L{n}.attn_out"] + t[f"L{n}.mlp_out"], t[f"L{n}.resid_post"])


def test_the_embedding_and_everything_added_make_the_final_stream(any_family):
    t = any_family.trace(TEXT, capture=["embed", *ADDED, "resid_post"])

    total = t["embed"] + sum(t[f"L{n}.{name}"] for n in layers(any_family) for name in ADDED)

    assert close(total, t[f"L{any_family.n_layers - 1}.resid_post"])


def test_only_what_a_family_really_lacks_is_missing(any_family):
    missing = {name for name, c in any_family.capabilities.items() if not c.available}

    assert missing == LACKS.get(any_family.name, set())


@pytest.mark.parametrize("family", PARALLEL)
def test_asking_a_parallel_block_for_resid_mid_says_why_and_what_there_is(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())

    with pytest.raises(CapabilityUnavailable, match=r"in parallel.*in a layer: resid_pre, .*z, attn_out"):
        model.trace(TEXT, capture=["L0.resid_mid"])


def test_the_heads_and_the_bias_add_up_to_attn_out(any_family):
    t = any_family.trace(TEXT, capture=["z", "attn_out"])

    for n in layers(any_family):
        heads, bias = any_family.architecture.head_outputs(n, t[f"L{n}.z"])
        assert heads.shape[-2:] == (any_family.n_heads, any_family.d_model)
        assert close(mx.sum(heads, axis=-2) + bias, t[f"L{n}.attn_out"])


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(POST_NORM)))
def test_z_times_w_o_is_attn_out_where_no_norm_stands_between(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    t = model.trace(TEXT, capture=["z", "attn_out"])
    arch = model.architecture

    for n in layers(model):
        bias = 0 if arch.b_o(n) is None else arch.b_o(n)
        out = (mx.einsum("bphd,hdm->bpm", t[f"L{n}.z"], arch.w_o(n)) + bias) * arch.attn_scale
        assert close(out, t[f"L{n}.attn_out"])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_pattern_times_v_is_z_and_each_row_of_a_pattern_is_a_causal_distribution(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    t = model.trace(TEXT, capture=["pattern", "v", "z"])

    for n in layers(model):
        pattern = np.array(t[f"L{n}.pattern"])
        np.testing.assert_allclose(pattern.sum(-1), 1.0, atol=1e-5)
        assert np.all(np.triu(pattern, k=1) == 0)
        z = attend(t[f"L{n}.pattern"], t[f"L{n}.v"].swapaxes(1, 2)).swapaxes(1, 2)
        assert close(z, t[f"L{n}.z"])


def test_a_query_decides_its_row_of_the_pattern_and_a_key_its_column(any_family):
    plain = np.array(any_family.trace(TEXT, capture=["L1.pattern"])["L1.pattern"])[0]
    t = any_family.trace(TEXT, capture=["L1.q", "L1.k", "L1.v"])
    changed = {}
    for name in ("q", "k"):
        edit = iv.scale(f"L1.{name}", -2.0, positions=7)
        moved = any_family.trace(TEXT, capture=["L1.pattern"], interventions=[edit])
        changed[name] = np.argwhere(np.abs(np.array(moved["L1.pattern"])[0] - plain).max(axis=0) > 1e-6)

    n_heads, n_kv_heads = any_family.n_heads, any_family.n_kv_heads
    assert [t[f"L1.{name}"].shape[2] for name in "qkv"] == [n_heads, n_kv_heads, n_kv_heads]
    assert {dest for dest, _ in changed["q"].tolist()} == {7}
    assert len(changed["q"]) > 1
    assert min(dest for dest, _ in changed["k"].tolist()) == 7
    assert len({dest for dest, _ in changed["k"].tolist()}) > 1


def test_the_parts_run_one_by_one_give_the_logits(any_family):
    arch = any_family.architecture
    prologue = arch.prologue(mx.array(any_family.to_tokens(TEXT)))

    h = prologue.h
    for n in layers(any_family):
        h = arch.block(n, h, prologue)

    assert close(arch.final(h), any_family.logits(TEXT))


def test_logits_are_linear_in_the_final_stream_at_its_own_norm_scale(any_family):
    last = f"L{any_family.n_layers - 1}.resid_post"
    t = any_family.trace(TEXT, capture=[last])
    arch = any_family.architecture
    some = mx.array([5, 17, 99])

    directions, constants = arch.logit_directions(some)
    logits = arch.norm_scale(t[last]) * (t[last] @ directions.T) + constants

    assert close(arch.softcapped(logits), t.logits[..., some], 1e-4)


@pytest.mark.usefixtures("pinned_threads")
def test_replacing_an_activation_by_itself_changes_nothing_at_all(any_family):
    # A pattern that is edited is multiplied out by hand, so there the last bits may move.
    names = [f"L1.{name}" for name in LAYER_NAMES if name in available(any_family) and name != "pattern"]
    t = any_family.trace(TEXT, capture=[*names, "embed", "final_norm"])

    for name in t.names:
        edited = any_family.logits(TEXT, interventions=[iv.replace(name, t[name])])
        assert mx.array_equal(edited, t.logits), name


@pytest.mark.parametrize("name", ["L0.resid_pre", "embed"])
def test_the_first_residual_of_another_prompt_makes_the_run_of_that_prompt(any_family, name):
    other = any_family.trace(OTHER, capture=[name])

    patched = any_family.logits(TEXT, interventions=[iv.replace(name, other[name])])

    assert close(patched, other.logits)


def test_a_residual_of_another_prompt_makes_the_run_of_that_prompt_from_there_on(any_family):
    names = [
        f"L1.{name}" for name in ("resid_pre", "resid_mid", "resid_post") if name in available(any_family)
    ]
    other = any_family.trace(OTHER, capture=names)

    for name in names:
        patched = any_family.logits(TEXT, interventions=[iv.replace(name, other[name])])
        assert close(patched, other.logits, 1e-4)


def test_all_heads_of_a_layer_together_are_its_attention(any_family):
    other = any_family.trace(OTHER, capture=["L1.z", "L1.attn_out"])

    by_heads = any_family.logits(TEXT, interventions=[iv.replace("L1.z", other["L1.z"], heads=range(4))])
    by_attention = any_family.logits(TEXT, interventions=[iv.replace("L1.attn_out", other["L1.attn_out"])])

    assert close(by_heads, by_attention)
    assert not close(by_heads, any_family.logits(TEXT))


def test_everything_added_by_another_prompt_makes_the_run_of_that_prompt(any_family):
    names = ["embed", *(f"L{n}.{name}" for n in layers(any_family) for name in ADDED)]
    other = any_family.trace(OTHER, capture=names)

    patched = any_family.logits(TEXT, interventions=[iv.replace(name, other[name]) for name in names])

    assert close(patched, other.logits)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("names", [("q", "k", "v"), ("pattern", "v")])
def test_what_attention_is_made_of_in_another_prompt_makes_its_z(family, names):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    other = model.trace(OTHER, capture=["L1.z", *(f"L1.{name}" for name in names)])
    edits = [iv.replace(f"L1.{name}", other[f"L1.{name}"]) for name in names]

    assert close(model.trace(TEXT, capture=["L1.z"], interventions=edits)["L1.z"], other["L1.z"])


def test_a_batch_of_unequal_prompts_gives_what_each_gives_alone(any_family):
    texts = ["A cat", TEXT, "x"]
    batch = any_family.trace(texts, capture=["L2.resid_post"])

    for row, text in enumerate(texts):
        alone = any_family.trace(text, capture=["L2.resid_post"])
        n = batch.lengths[row]
        assert close(batch.logits[row : row + 1, :n], alone.logits)
        assert close(batch["L2.resid_post"][row : row + 1, :n], alone["L2.resid_post"])
        assert close(batch.last_logits[row], alone.logits[0, -1])


def test_edits_of_batch_rows_are_edits_of_single_runs(any_family):
    tokens = np.repeat(any_family.to_tokens(TEXT), 3, axis=0)
    edits = [iv.zero("L1.z", rows=0, heads=2), iv.zero("L0.mlp_out", rows=2, positions=3)]

    rows, _ = any_family.run(tokens, interventions=edits)

    assert close(rows[:1], any_family.logits(TEXT, interventions=[iv.zero("L1.z", heads=2)]))
    assert close(rows[1:2], any_family.logits(TEXT))
    assert close(rows[2:], any_family.logits(TEXT, interventions=[iv.zero("L0.mlp_out", positions=3)]))


def test_generation_with_a_cache_gives_what_whole_runs_give(any_family):
    prompt = any_family.to_tokens(TEXT)[0].tolist()
    edits = [iv.scale("L1.mlp_out", 1.5, positions=slice(4, None))]

    made = any_family.generate(TEXT, max_new_tokens=5, interventions=edits, stop_at_end=False)

    for _ in range(5):
        prompt.append(int(mx.argmax(any_family.logits(prompt, interventions=edits)[0, -1]).item()))
    assert list(made.tokens) == prompt[-5:]


def test_a_position_before_any_difference_is_untouched_by_later_edits(any_family):
    edited = any_family.logits(TEXT, interventions=[iv.zero("L0.attn_out", positions=6)])

    assert close(edited[:, :6], any_family.logits(TEXT)[:, :6], 1e-6)
    assert not close(edited[:, 6:], any_family.logits(TEXT)[:, 6:])

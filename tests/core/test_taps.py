import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxterp.core import interventions as iv
from mlxterp.core.taps import renamed, tapped
from mlxterp.errors import HookError
from tests.core.conftest import close

TEXT = "The cat sat"


def classes(model) -> list[type]:
    return [type(module) for _, module in model.model.named_modules()]


def attributes(model) -> list[dict]:
    return [dict(module.__dict__) for _, module in model.model.named_modules()]


def doubled(call, *args):
    return 2 * call(*args)


def test_a_tap_sees_a_modules_call_and_may_change_what_it_returns():
    layer = nn.Linear(3, 2)
    x = mx.ones((1, 3))
    plain = layer(x)

    with tapped([(layer, doubled)]):
        assert mx.array_equal(layer(x), 2 * plain)

    assert mx.array_equal(layer(x), plain)


@pytest.mark.parametrize("quantise", [False, True])
def test_a_tapped_module_is_still_what_it_was(quantise):
    layer = nn.Linear(64, 32)
    layer = nn.QuantizedLinear.from_linear(layer) if quantise else layer
    names = set(layer.parameters())

    with tapped([(layer, doubled)]):
        assert isinstance(layer, nn.QuantizedLinear if quantise else nn.Linear)
        assert type(layer).__name__ == ("QuantizedLinear" if quantise else "Linear")
        assert set(layer.parameters()) == names


def test_two_taps_on_one_module_both_act_and_both_go():
    layer = nn.Linear(3, 2)
    x = mx.ones((1, 3))
    plain = layer(x)

    with tapped([(layer, doubled), (layer, lambda call, x: call(x) + 1)]):
        assert mx.array_equal(layer(x), 2 * plain + 1)

    assert type(layer) is nn.Linear
    assert mx.array_equal(layer(x), plain)


def test_an_inner_block_of_taps_leaves_the_outer_one_in_force():
    layer = nn.Linear(3, 2)
    x = mx.ones((1, 3))
    plain = layer(x)

    with tapped([(layer, doubled)]):
        with tapped([(layer, lambda call, x: call(x) + 1)]):
            assert mx.array_equal(layer(x), 2 * plain + 1)
        assert mx.array_equal(layer(x), 2 * plain)


def test_a_name_means_something_else_only_inside_the_block():
    namespace = {"f": 1}

    def inside() -> None:
        with renamed("f", [(namespace, 2)]):
            assert namespace["f"] == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()

    assert namespace == {"f": 1}


@pytest.mark.parametrize(
    "point", ["embed", "L1.resid_pre", "L1.q", "L1.pattern", "L1.z", "L1.resid_mid", "L1.mlp_out"]
)
@pytest.mark.usefixtures("pinned_threads")
def test_an_edit_that_raises_leaves_the_model_untouched(tiny_llama, point):
    before, kinds, parts = tiny_llama.logits(TEXT), classes(tiny_llama), attributes(tiny_llama)

    with pytest.raises(ZeroDivisionError):
        tiny_llama.logits(TEXT, interventions=[iv.edit(point, lambda _: 1 / 0)])

    assert classes(tiny_llama) == kinds
    assert attributes(tiny_llama) == parts
    assert mx.array_equal(tiny_llama.logits(TEXT), before)


def test_an_ordinary_run_leaves_the_model_untouched(tiny_llama):
    kinds, parts = classes(tiny_llama), attributes(tiny_llama)

    tiny_llama.trace(TEXT, capture=["resid_pre", "q", "pattern", "z", "attn_out", "final_norm"])

    assert classes(tiny_llama) == kinds
    assert attributes(tiny_llama) == parts


def test_an_edit_that_runs_the_model_again_is_refused_and_the_next_run_works(tiny_llama):
    again = iv.edit("L1.mlp_out", lambda _: tiny_llama.trace("a", capture="L0.z")["L0.z"])

    with pytest.raises(HookError, match="from inside one of its own runs"):
        tiny_llama.logits(TEXT, interventions=[again])

    assert close(tiny_llama.trace(TEXT, capture="L0.z").logits, tiny_llama.logits(TEXT))

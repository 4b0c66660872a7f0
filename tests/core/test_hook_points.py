import pytest

from mlxterp.component_names import component_name, head_label
from mlxterp.core.hook_points import HookPoint, expand, parse
from mlxterp.errors import UnknownHookPoint


@pytest.mark.parametrize("text", ["L0.resid_pre", "L12.z", "embed", "final_norm", "logits", "layers.0.mlp"])
def test_a_hook_point_reads_back_as_it_was_written(text):
    assert str(parse(text)) == text


def test_a_parsed_hook_point_knows_its_layer():
    assert parse("L9.z") == HookPoint("z", 9)


@pytest.mark.parametrize("text", ["L3.nonsense", "resid", "L3.", "", "L3.embed"])
def test_an_unknown_name_is_an_error_that_lists_the_names_there_are(text):
    with pytest.raises(UnknownHookPoint, match=r"resid_pre, q, k, v, pattern, z, attn_out"):
        parse(text)


def test_a_layer_name_without_its_layer_says_how_to_write_it():
    with pytest.raises(UnknownHookPoint, match=r"'L0\.z'"):
        parse("z")


def test_a_bare_layer_name_expands_to_every_layer_and_no_point_comes_twice():
    assert [str(p) for p in expand(["z", "L1.z", "embed"], 3)] == ["L0.z", "L1.z", "L2.z", "embed"]


def test_one_name_may_be_given_without_a_list():
    assert [str(p) for p in expand("L2.mlp_out", 3)] == ["L2.mlp_out"]


@pytest.mark.parametrize(
    ("component", "name"),
    [("mlp", "mlp_out"), ("attn", "attn_out"), ("attn_head", "z"), ("resid_pre", "resid_pre")],
)
def test_components_have_short_names(component, name):
    assert component_name(component) == name


def test_an_unknown_component_is_an_error_that_lists_the_components():
    with pytest.raises(UnknownHookPoint, match="attn_head"):
        component_name("attention")


def test_a_head_is_written_with_its_layer():
    assert head_label(9, 6) == "L9.H6"

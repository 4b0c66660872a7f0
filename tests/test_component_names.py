import pytest

from mlxterp.component_names import ComponentName, canonical_component, parse_component, parse_head


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("L9.H6", ComponentName("z", 9, 6)),
        ("L9.H6@-1", ComponentName("z", 9, 6, -1)),
        ("L9.head.h6", ComponentName("z", 9, 6)),
        ("L0.attn@3", ComponentName("attn_out", 0, None, 3)),
        ("embed", ComponentName("embed")),
    ],
)
def test_a_site_is_read_and_written(text, site):
    assert parse_component(text) == site
    assert parse_component(str(site)) == site


def test_a_canonical_site_stays_as_it_is():
    site = canonical_component("L3.resid_post@4", n_tokens=10)

    assert str(site) == "L4.resid_pre@-6"
    assert canonical_component(site, n_tokens=10) == site


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("L9.foo", "there is no 'foo'"),
        ("resid_pre", "resid_pre is in every layer: say which"),
        ("L9.logits", "logits is in no layer"),
        ("L9.mlp.h2", "mlp_out has no heads"),
        ("layer 9", "it is not spelled like a component"),
    ],
)
def test_what_names_no_component_is_refused_with_the_reason(text, why):
    with pytest.raises(ValueError, match=why):
        parse_component(text)


def test_only_a_head_without_a_position_is_a_head():
    assert [parse_head(text) for text in ("L9.H6", "L9.H6@-1", "L9.mlp")] == [(9, 6), None, None]

"""The price table: what answers cost, what a request costs at worst, which names are old."""

from __future__ import annotations

import pytest

from mlxterp.llm import prices
from mlxterp.llm.prices import (
    _TABLE,
    DEFAULT_MODEL,
    ENDED,
    LONG_PROMPT,
    Tokens,
    deprecation,
    price_of,
    sdk_table,
)


def test_each_kind_of_token_has_its_own_price():
    million = 1_000_000
    priced = price_of("claude-opus-5-5")

    assert priced.usd(Tokens(input=million)) == pytest.approx(4.0)
    assert priced.usd(Tokens(output=million)) == pytest.approx(20.0)
    assert priced.usd(Tokens(cache_write=million)) == pytest.approx(5.0)
    assert priced.usd(Tokens(cache_write_1h=million)) == pytest.approx(8.0)
    assert priced.usd(Tokens(cache_read=million)) == pytest.approx(0.2)


def test_usage_is_taken_apart_without_counting_a_token_twice():
    usage = {
        "input_tokens": 5,
        "output_tokens": 7,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
        "cache_read_input_tokens": 100,
    }

    tokens = Tokens.of(usage)

    assert tokens == Tokens(input=5, cache_write=20, cache_write_1h=10, cache_read=100, output=7)
    assert (tokens.prompt, tokens.total) == (135, 142)
    assert Tokens.of({"input_tokens": None}) == Tokens()


def test_a_long_prompt_is_dearer_where_the_table_says_so():
    priced = price_of("claude-haiku-5-5")

    assert priced.usd(Tokens(input=LONG_PROMPT)) == pytest.approx(0.1 * 0.1)
    assert priced.usd(Tokens(cache_read=LONG_PROMPT, input=1)) == pytest.approx((1e5 * 0.05 + 0.5) / 1e6)
    assert priced.at_most(10, 10) >= priced.usd(Tokens(cache_write=10, output=10))


def test_what_a_request_costs_at_worst_is_never_less_than_what_it_costs():
    for model in [*_TABLE, "another"]:
        priced = price_of(model)
        for tokens in (
            Tokens(input=500, output=9),
            Tokens(cache_write=500, output=9),
            Tokens(cache_read=500),
        ):
            assert priced.usd(tokens) <= priced.at_most(500, 9) + 1e-15


def test_a_date_at_the_end_of_a_name_does_not_change_its_price():
    assert price_of("claude-sonnet-4-20250514") == price_of("claude-sonnet-4")
    assert price_of("claude-haiku-4-5-20251001").estimated is False


def test_a_model_without_a_price_is_estimated_as_the_dearest():
    unknown = price_of("gpt-of-the-house")

    assert unknown.estimated
    for name in _TABLE:
        assert price_of(name).at_most(1000, 1000) <= unknown.at_most(1000, 1000)


def test_the_default_is_current_and_has_a_price():
    assert deprecation(DEFAULT_MODEL) is None
    assert not price_of(DEFAULT_MODEL).estimated


@pytest.mark.parametrize(
    ("old", "date", "new"),
    [
        ("claude-sonnet-4-20250514", "2026-06-15", "claude-sonnet-5-5"),
        ("claude-opus-4-0", "2026-06-15", "claude-opus-5-5"),
        ("claude-3-5-haiku-latest", "2026-02-19", "claude-haiku-5-5"),
        ("claude-2.1", "2025-07-21", "claude-sonnet-5-5"),
    ],
)
@pytest.mark.parametrize("sdk_knows", [False, True])
def test_an_ended_model_is_named_with_its_date_and_successor_whatever_the_sdk_knows(
    monkeypatch, old, date, new, sdk_knows
):
    monkeypatch.setattr(prices, "sdk_table", lambda: {old: "another day"} if sdk_knows else {})

    assert deprecation(old) == (
        f"{old} is deprecated, its service ends or ended on {date}; {new} replaces it"
    )
    assert deprecation(new) is None


def test_the_successor_of_every_ended_model_is_current_and_has_a_price():
    for old, end in ENDED.items():
        assert end.successor not in ENDED, old
        assert not price_of(end.successor).estimated, old


def test_an_end_that_only_the_sdk_announces_is_said_with_the_current_model_of_the_family(monkeypatch):
    monkeypatch.setattr(
        prices, "sdk_table", lambda: {"claude-opus-5": "May 1st, 2027", DEFAULT_MODEL: "May 1st, 2030"}
    )

    assert deprecation("claude-opus-5") == (
        "claude-opus-5 is deprecated, its service ends or ended on May 1st, 2027; claude-opus-5-5 replaces it"
    )
    assert str(deprecation(DEFAULT_MODEL)).endswith("ended on May 1st, 2030; choose a current model")


def test_an_sdk_without_a_table_announces_nothing(monkeypatch):
    messages = pytest.importorskip("anthropic.resources.messages.messages")
    monkeypatch.delattr(messages, "DEPRECATED_MODELS", raising=False)

    assert sdk_table() == {}

"""What a model of the Messages API costs, and which model to use. The service reports tokens, never money.

Prices are dollars per million tokens as published on 2026-11 (platform.claude.com, "Pricing"); fast and
regional prices are not here, because no request uses them. A model that is not in the table is priced as the
most expensive one in it, and everything derived from it is marked `estimated`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DEFAULT_MODEL = "claude-sonnet-5-5"
OF = "2026-11"
"""The month of this table; every charge in the journal names it."""

LONG_PROMPT = 100_000
"""Tokens of a prompt above which some models have another price."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens; a cache entry lives 5 minutes, or an hour (`write_1h`)."""

    input: float
    output: float
    cache_read: float
    long_prompt: Price | None = None

    @property
    def cache_write(self) -> float:
        return self.input * 1.25

    @property
    def cache_write_1h(self) -> float:
        return self.input * 2.0


class Tokens(NamedTuple):
    """The tokens of one answer, as the service counts them: the parts do not overlap."""

    input: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    cache_read: int = 0
    output: int = 0

    @property
    def prompt(self) -> int:
        """Every token of the request."""
        return self.input + self.cache_write + self.cache_write_1h + self.cache_read

    @property
    def total(self) -> int:
        """The tokens that count towards --max-tokens."""
        return self.prompt + self.output

    @staticmethod
    def of(usage: Mapping[str, Any]) -> Tokens:
        """From the `usage` of an answer."""
        whole = int(usage.get("cache_creation_input_tokens") or 0)
        hour = int((usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0)
        return Tokens(
            input=int(usage.get("input_tokens") or 0),
            cache_write=max(0, whole - hour),
            cache_write_1h=hour,
            cache_read=int(usage.get("cache_read_input_tokens") or 0),
            output=int(usage.get("output_tokens") or 0),
        )


@dataclass
class Usage:
    """Sums over answers: how many, their tokens and their dollars. Lost replies are not in them."""

    calls: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    usd: float = 0.0

    def add(self, tokens: Tokens, usd: float) -> None:
        """Counts one answer."""
        self.calls += 1
        self.tokens = Tokens(*(a + b for a, b in zip(self.tokens, tokens, strict=True)))
        self.usd += usd

    @property
    def cache_share(self) -> float:
        """The part of all input tokens that was read from the service's cache."""
        return self.tokens.cache_read / self.tokens.prompt if self.tokens.prompt else 0.0


class Priced(NamedTuple):
    """A price, and whether it is an estimate."""

    price: Price
    estimated: bool

    def usd(self, tokens: Tokens) -> float:
        """The cost of these tokens, in dollars."""
        price = self.price
        if price.long_prompt is not None and tokens.prompt > LONG_PROMPT:
            price = price.long_prompt
        millions = (
            tokens.input * price.input
            + tokens.cache_write * price.cache_write
            + tokens.cache_write_1h * price.cache_write_1h
            + tokens.cache_read * price.cache_read
            + tokens.output * price.output
        )
        return millions / 1e6

    def at_most(self, prompt: int, output: int) -> float:
        """What a request of at most so many tokens can cost at worst, in dollars.

        The dearest token of a prompt is written to the cache; our requests ask for the 5-minute cache only.
        """
        prices = (self.price, self.price.long_prompt or self.price)
        return max(prompt * each.cache_write + output * each.output for each in prices) / 1e6


_OPUS_4 = Price(15, 75, 1.5)
_OPUS_4_5 = Price(5, 25, 0.5)
_SONNET_4 = Price(3, 15, 0.3)
_DEAREST = Price(15, 75, 1.5)

_TABLE = {
    "claude-fable-5-1": Price(10, 50, 0.25),
    "claude-fable-5": Price(10, 50, 1.0),
    "claude-opus-5-5": Price(4, 20, 0.2),
    "claude-opus-5": _OPUS_4_5,
    "claude-opus-4-8": _OPUS_4_5,
    "claude-opus-4-7": _OPUS_4_5,
    "claude-opus-4-6": _OPUS_4_5,
    "claude-opus-4-5": _OPUS_4_5,
    "claude-opus-4-1": _OPUS_4,
    "claude-opus-4-0": _OPUS_4,
    "claude-opus-4": _OPUS_4,
    "claude-sonnet-5-5": Price(2, 10, 0.1),
    "claude-sonnet-5": Price(2, 10, 0.2),
    "claude-sonnet-4-6": _SONNET_4,
    "claude-sonnet-4-5": _SONNET_4,
    "claude-sonnet-4-0": _SONNET_4,
    "claude-sonnet-4": _SONNET_4,
    "claude-haiku-5-5": Price(0.1, 0.5, 0.01, long_prompt=Price(0.5, 2.5, 0.05)),
    "claude-haiku-4-5": Price(1, 5, 0.1),
}


def price_of(model: str) -> Priced:
    """The price of a model by its name, with or without the date at its end."""
    known = _TABLE.get(model) or _TABLE.get(re.sub(r"-\d{8}$", "", model))
    return Priced(known or _DEAREST, estimated=known is None)


class EndOfService(NamedTuple):
    """When the service of a model ends or has ended, and the current model to use instead."""

    date: str
    successor: str


def _ended(date: str, successor: str, *models: str) -> dict[str, EndOfService]:
    return dict.fromkeys(models, EndOfService(date, successor))


ENDED = {
    **_ended("2024-11-06", "claude-sonnet-5-5", "claude-1.3", "claude-1.3-100k"),
    **_ended("2024-11-06", "claude-haiku-5-5", "claude-instant-1.1", "claude-instant-1.1-100k"),
    **_ended("2024-11-06", "claude-haiku-5-5", "claude-instant-1.2"),
    **_ended("2025-07-21", "claude-sonnet-5-5", "claude-2.0", "claude-2.1", "claude-3-sonnet-20240229"),
    **_ended("2026-01-05", "claude-opus-5-5", "claude-3-opus-20240229"),
    **_ended("2026-02-19", "claude-sonnet-5-5", "claude-3-7-sonnet-latest", "claude-3-7-sonnet-20250219"),
    **_ended("2026-02-19", "claude-haiku-5-5", "claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
    **_ended("2026-06-15", "claude-opus-5-5", "claude-opus-4-0", "claude-opus-4-20250514"),
    **_ended("2026-06-15", "claude-sonnet-5-5", "claude-sonnet-4-0", "claude-sonnet-4-20250514"),
    **_ended("2026-11-30", "claude-sonnet-5-5", "claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
    **_ended("2027-01-22", "claude-opus-5-5", "claude-opus-4-5", "claude-opus-4-5-20251101"),
}
"""Models whose service has ended or whose end is announced, as published on 2026-11."""


def deprecation(model: str) -> str | None:
    """Why not to use this model, and which to use instead; None if no end of its service is known.

    Our own table comes first. A model that it does not list is looked up in the table of the installed SDK,
    which adds the announcements made since and drops old ones.
    """
    end = ENDED.get(model) or _announced_by_the_sdk(model)
    if end is None:
        return None
    says = f"{model} is deprecated, its service ends or ended on {end.date}"
    if end.successor == model:  # only the SDK knows of this end
        return f"{says}; choose a current model"
    return f"{says}; {end.successor} replaces it"


def _announced_by_the_sdk(model: str) -> EndOfService | None:
    date = sdk_table().get(model)
    return None if date is None else EndOfService(date, _current_of_family(model))


def sdk_table() -> Mapping[str, str]:
    """The installed SDK's table of deprecated models, name to date; empty where this SDK has none.

    It is no part of the SDK's public interface, so it may be missing or have another form.
    """
    try:
        module = importlib.import_module("anthropic.resources.messages.messages")
    except ImportError:
        return {}
    table = vars(module).get("DEPRECATED_MODELS")
    return {str(name): str(date) for name, date in table.items()} if isinstance(table, Mapping) else {}


def _current_of_family(model: str) -> str:
    family = next((each for each in ("opus", "haiku") if each in model), "sonnet")
    return f"claude-{family}-5-5"

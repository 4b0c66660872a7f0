"""What the conclusions of all studies share: form, steps that were left out, predictions that held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlxterp_agent.researchers.scripted.plan import FAILED, NO_BUDGET, Known

Cited = tuple[str, str, str]
"""A name, and the step and key of the number it stands for."""


@dataclass(frozen=True)
class Conclusion:
    """What the last entry says.

    Attributes:
        text: the answer in a few sentences.
        shown, not_shown: every result, and every limit.
        cited: the numbers it rests on.
        answered: whether the criterion is met.
        criterion: what has to be the case for that.
    """

    text: str
    shown: list[str]
    not_shown: list[str]
    cited: list[Cited]
    answered: bool
    criterion: str


def left_out(known: Known, order: Sequence[str]) -> list[str]:
    """Steps that failed, or that the budget was too short for; those that had nothing to ask are no limit."""
    return [
        f"what the step {name} would have shown: {known.skipped[name]}."
        for name in order
        if name not in known.measured and known.skipped.get(name, "").startswith((FAILED, NO_BUDGET))
    ]


def predictions(known: Known) -> str:
    """How many predictions held, in a sentence."""
    held = [each.numbers.get("as_predicted") is True for each in known.measured.values()]
    return f"Of {len(held)} predictions, each written down before its run, {sum(held)} held."


def some(*sentences: str) -> list[str]:
    """The sentences that are not empty."""
    return [sentence for sentence in sentences if sentence]


def listed(items: Iterable[object]) -> str:
    """`a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)

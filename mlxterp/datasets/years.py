"""Greater than: an event that begins in one year ends in a later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import DRAWS_PER_PAIR, Selection, rows_of, select_pairs
from mlxterp.errors import PromptPairError, TokenError

_KINDS = """
bitter costly difficult failed famous final first great last local long new old peaceful quiet royal secret
short strange successful sudden third
"""
_EVENTS = """
war siege voyage conflict campaign expedition project reign dynasty dispute struggle rebellion blockade
boycott construction crisis crusade debate drought epidemic era exile experiment famine feud journey
marriage mission negotiation occupation partnership peace pilgrimage plague program revolt search strike
survey trade trial truce
"""
EVENTS = tuple(f"{kind} {event}" for kind in _KINDS.split() for event in _EVENTS.split())
CENTURIES = (15, 16, 17, 18)
TEMPLATE = "The {event} lasted from the year {year} to the year {century}"


def greater_than_pairs(
    model: InterpretableModel,
    n: int = 16,
    *,
    seed: int = 0,
    shown: bool = True,
    one_length: bool = True,
    apart_from: Sequence[PromptPair] = (),
    events: Sequence[str] = EVENTS,
    template: str = TEMPLATE,
) -> list[PromptPair]:
    """`The war lasted from the year 1774 to the year 17` is continued with `8`: a war ends after it began.

    In the corrupted prompt the war begins at least two decades earlier (`1754`) and the foil is the decade
    after it, `6`: possible there, impossible in the clean prompt. The prompts differ in the year only. Where
    two digits are one token (`17|74`), answer and foil are `84` and `64`. Costs two forwards per pair that is
    tried, at most eight times n pairs.

    Args:
        n: how many pairs; no two share a prompt. There are about 26,000: of each event, century and digit
            of the year, one.
        seed: of the draw; another seed draws other pairs.
        shown: only pairs on which the model shows the behaviour; False to measure how often it does.
        one_length: only pairs of the commonest token length, which one call can measure; False pools all
            lengths (`by_length`).
        apart_from: pairs to share no prompt with, such as those already explored.
        events: to choose from.
        template: with `{year}`, `{century}` at its end, and `{event}` as wanted.

    Raises:
        PromptPairError: the tokenizer does not split a year after its century, or the model shows it on too
            few pairs.

    Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?". They sum the probability of all later
    years and corrupt with the year 01; here one later and one earlier token are compared, and the corrupted
    prompt has its own answer.
    """

    def candidates() -> Iterator[PromptPair]:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS_PER_PAIR * n):
            event, century = str(rng.choice(events)), int(rng.choice(CENTURIES))
            unit, decade = int(rng.integers(2, 9)), int(rng.integers(3, 9))
            earlier = int(rng.integers(1, decade - 1))
            clean, corrupted = (
                template.format(event=event, century=century, year=f"{century}{tens}{unit}")
                for tens in (decade, earlier)
            )
            yield PromptPair(
                clean=clean,
                corrupted=corrupted,
                answer=_continuation_token(model, clean, f"{decade + 1}{unit}"),
                foil=_continuation_token(model, corrupted, f"{earlier + 1}{unit}"),
                name=f"after {century}{decade}{unit}, not {century}{earlier}{unit}",
            )

    return select_pairs(model, candidates(), Selection(n, shown, one_length, apart_from), what="greater-than")


def _continuation_token(model: InterpretableModel, prompt: str, digits: str) -> int:
    """The token that follows the prompt when it continues with these two digits."""
    try:
        before, whole = rows_of(model, prompt)[0], rows_of(model, prompt + digits)[0]
    except TokenError as problem:
        raise PromptPairError(
            f"greater-than needs years, and {model.name} has no tokens for them: {problem}"
        ) from problem
    if len(whole) <= len(before) or not np.array_equal(whole[: len(before)], before):
        raise PromptPairError(
            f"greater-than needs a year that splits after its century, and {model.name} reads "
            f"{prompt[-8:] + digits!r} as {'|'.join(model.to_str_tokens(whole)[-3:])!r}. Use a model whose "
            "tokens hold one or two digits."
        )
    return int(whole[len(before)])

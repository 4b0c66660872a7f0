"""Indirect object identification: of two names, the model continues with the one that is not repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import DRAWS_PER_PAIR, Selection, is_one_word, row_of, select_pairs
from mlxterp.errors import PromptPairError

_NAMES = """
Mary John Tom James Michael Robert William David Richard Joseph Thomas Charles Daniel Matthew Anthony Mark
Paul Steven Andrew George Kevin Brian Edward Jason Jeff Ryan Jacob Gary Eric Stephen Scott Frank Jack Linda
Susan Jessica Sarah Karen Lisa Nancy Margaret Emily Michelle Laura Rebecca Amy Anna Kate Alice Rachel
"""
_PLACES = "store garden restaurant school hospital office house station park market library farm"
_THINGS = "drink book ring basket computer bone necklace kiss gift letter ball pen"
NAMES, PLACES, THINGS = (tuple(words.split()) for words in (_NAMES, _PLACES, _THINGS))
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "When {a} and {b} got a {thing} at the {place}, {s} gave it to",
    "After {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then {a} and {b} went to the {place}, and {s} gave the {thing} to",
    "While {a} and {b} were at the {place}, {s} gave a {thing} to",
)
"""`{a}` and `{b}` are the two names, `{s}` is the one that is repeated, the subject that gives."""


def ioi_pairs(
    model: InterpretableModel,
    n: int = 16,
    *,
    seed: int = 0,
    shown: bool = True,
    one_length: bool = True,
    apart_from: Sequence[PromptPair] = (),
    names: Sequence[str] = NAMES,
    places: Sequence[str] = PLACES,
    things: Sequence[str] = THINGS,
    templates: Sequence[str] = TEMPLATES,
) -> list[PromptPair]:
    """`When Mary and John went to the store, John gave a drink to` is continued with `Mary`.

    In the corrupted prompt the other name is the giver (`… store, Mary gave a drink to`), so it is continued
    with the foil, `John`. The prompts differ in that one token. Names come in both orders, so the answer is
    the first or the second name. A pair's `slice` is its template. Costs two forwards per pair that is tried,
    at most eight times n pairs.

    Args:
        n: how many pairs; no two share a prompt.
        seed: of the draw; another seed draws other pairs.
        shown: only pairs on which the model shows the behaviour; False to measure how often it does.
        one_length: only pairs of the commonest token length, which one call can measure; False pools all
            lengths (`by_length`).
        apart_from: pairs to share no prompt with, such as those already explored.
        names, places, things: words to choose from; those that are not one token are left out.
        templates: with `{a}`, `{b}`, `{s}`, and `{place}` and `{thing}` as wanted.

    Raises:
        PromptPairError: the tokenizer has fewer than two names as one token each, or the model shows it
            on too few pairs.

    Source: Wang et al. 2022, "Interpretability in the Wild". Their corrupted prompts hold three other names;
    exchanging the giver is the symmetric corruption of Zhang & Nanda 2023.
    """
    people, where, what = (
        [word for word in dict.fromkeys(words) if is_one_word(model, word)]
        for words in (names, places, things)
    )
    usable = [t for t in templates if row_of(model, _fill_template(t, people, where, what)) is not None]
    for has, there in (
        ("two names", len(people) >= 2),
        ("a place", bool(where)),
        ("a thing", bool(what)),
        ("a template", bool(usable)),
    ):
        if not there:
            raise PromptPairError(
                f"indirect objects need {has}, and for the tokenizer of {model.name} {len(people)} of "
                f"{len(names)} names, {len(where)} of {len(places)} places and {len(what)} of {len(things)} "
                f"things are one token, and {len(usable)} of {len(templates)} templates can be written. Give "
                "others: names=, places=, things=, templates=."
            )

    def candidates() -> Iterator[PromptPair]:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS_PER_PAIR * n):
            a, b = (str(name) for name in rng.choice(people, size=2, replace=False))
            template, place, thing = (str(rng.choice(words)) for words in (usable, where, what))
            subject, other = (a, b) if rng.integers(2) else (b, a)
            yield PromptPair(
                clean=template.format(a=a, b=b, s=subject, place=place, thing=thing),
                corrupted=template.format(a=a, b=b, s=other, place=place, thing=thing),
                answer=f" {other}",
                foil=f" {subject}",
                name=f"{subject} gives to {other}",
                slice=template,
            )

    return select_pairs(
        model, candidates(), Selection(n, shown, one_length, apart_from), what="indirect objects"
    )


def _fill_template(template: str, names: Sequence[str], places: Sequence[str], things: Sequence[str]) -> str:
    first = {"place": next(iter(places), ""), "thing": next(iter(things), "")}
    name = next(iter(names), "")
    return template.format(a=name, b=name, s=name, **first)

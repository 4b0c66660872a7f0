"""Docstrings: a Python docstring continues with the next argument of its function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import DRAWS_PER_PAIR, Selection, is_one_word, row_of, select_pairs
from mlxterp.errors import PromptPairError

_ARGUMENTS = """
load size file last image name path value index count state user group mode time date text line page field
table color width height source target label model input output level order limit offset start stop step port
host node root result error message option format type token filter query record scale score weight
"""
_WORDS = """
crime population unit dark oil column piece water music garden river paper winter market summer village bread
stone glass mountain horse window letter kitchen doctor teacher soldier island forest bridge machine station
"""
ARGUMENTS, WORDS = tuple(_ARGUMENTS.split()), tuple(_WORDS.split())
TEMPLATE = '''def {name}(self, {a}, {b}, {c}, {d}):
    """{w0} {w1} {w2}

    :param {a}: {w3} {w4}
    :param {b}: {w5} {w6}
    :param'''
"""`{c}` is the argument that comes next; `{w0}` to `{w6}` are words unrelated to it."""


def docstring_pairs(
    model: InterpretableModel,
    n: int = 16,
    *,
    seed: int = 0,
    shown: bool = True,
    one_length: bool = True,
    apart_from: Sequence[PromptPair] = (),
    arguments: Sequence[str] = ARGUMENTS,
    words: Sequence[str] = WORDS,
    template: str = TEMPLATE,
) -> list[PromptPair]:
    """A docstring that has described the arguments `load` and `size` continues with the third, `:param file`.

    In the corrupted prompt the function's third argument is another, the foil; nothing else differs, so the
    prompts differ in one token. SmolLM2-135M shows it on 24 of 24 pairs that were not chosen for it. Costs
    two forwards per pair that is tried, at most eight times n pairs.

    Args:
        n: how many pairs; no two share a prompt.
        seed: of the draw; another seed draws other pairs.
        shown: only pairs on which the model shows the behaviour; False to measure how often it does.
        one_length: only pairs of the commonest token length, which one call can measure; False pools all
            lengths (`by_length`).
        apart_from: pairs to share no prompt with, such as those already explored.
        arguments, words: to choose from; those that are not one token after a space are left out.
        template: with `{a}`, `{b}`, `{c}` at least; the answer follows its end.

    Raises:
        PromptPairError: the tokenizer has too few of these words as one token, or none for line breaks; or
            the model shows it on too few pairs.

    Source: Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only
    transformer". They exchange all arguments of the definition, of the docstring, or both; exchanging the one
    that is asked for is the symmetric corruption of Zhang & Nanda 2023.
    """
    names = [word for word in dict.fromkeys(arguments) if is_one_word(model, word)]
    plain = [word for word in dict.fromkeys(words) if is_one_word(model, word) and word not in names]
    writable = row_of(model, _fill_template(template, [*names, *[""] * 5], [*plain, *[""] * 7])) is not None
    if len(names) < 6 or len(plain) < 7 or not writable:
        raise PromptPairError(
            f"docstrings need six arguments and seven words of one token, and line breaks; for the tokenizer "
            f"of {model.name} {len(names)} of {len(arguments)} arguments and {len(plain)} of {len(words)} "
            f"words are one token, and the template can{'' if writable else 'not'} be written. Give others: "
            "arguments=, words=, template=."
        )

    def candidates() -> Iterator[PromptPair]:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS_PER_PAIR * n):
            chosen = [str(name) for name in rng.choice(names, size=6, replace=False)]
            said = [str(word) for word in rng.choice(plain, size=7, replace=False)]
            *before, right, wrong, last, function = chosen
            yield PromptPair(
                clean=_fill_template(template, [*before, right, last, function], said),
                corrupted=_fill_template(template, [*before, wrong, last, function], said),
                answer=f" {right}",
                foil=f" {wrong}",
                name=f"{right} after {' and '.join(before)}",
            )

    return select_pairs(model, candidates(), Selection(n, shown, one_length, apart_from), what="docstrings")


def _fill_template(template: str, names: Sequence[str], words: Sequence[str]) -> str:
    a, b, c, d, name = names[:5]
    return template.format(a=a, b=b, c=c, d=d, name=name, **{f"w{i}": w for i, w in enumerate(words[:7])})

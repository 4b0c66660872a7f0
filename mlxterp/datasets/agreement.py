"""Subject–verb agreement: the verb has the number of the subject, not of the noun that stands before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import DRAWS_PER_PAIR, Selection, is_one_word, select_pairs
from mlxterp.errors import PromptPairError

_SUBJECTS = """
author farmer soldier teacher doctor lawyer singer painter sailor driver writer guard judge king boy girl
friend neighbor visitor servant officer prisoner picture letter book table chair window door ship
car horse dog bird tree house road stone student worker sister brother cousin uncle stranger traveler merchant
"""
_PLACES = """
church river station bridge garden school hill village market forest wall lake tower gate fire castle field
kitchen library hotel hospital court square harbor
"""
SUBJECTS, PLACES = tuple(_SUBJECTS.split()), tuple(_PLACES.split())
PREPOSITIONS = ("near", "behind", "beside", "above", "below", "beyond", "opposite")
VERBS = (("were", "was"), ("are", "is"), ("have", "has"))
TEMPLATE = "The {subject} {preposition} the {place}"


def agreement_pairs(
    model: InterpretableModel,
    n: int = 16,
    *,
    seed: int = 0,
    shown: bool = True,
    one_length: bool = True,
    apart_from: Sequence[PromptPair] = (),
    subjects: Sequence[str] = SUBJECTS,
    template: str = TEMPLATE,
) -> list[PromptPair]:
    """`The authors near the church` is continued with ` were`; `The author near the church` with ` was`.

    The clean subject is a plural in -s, the corrupted one its singular; the place between it and the verb is
    a singular, so the verb's number is not that of the noun before it. The prompts differ in one token. Costs
    two forwards per pair that is tried, at most eight times n pairs.

    Args:
        n: how many pairs; no two share a prompt. There are about 8,000.
        seed: of the draw; another seed draws other pairs.
        shown: only pairs on which the model shows the behaviour; False to measure how often it does.
        one_length: only pairs of the commonest token length, which one call can measure; False pools all
            lengths (`by_length`).
        apart_from: pairs to share no prompt with, such as those already explored.
        subjects: singulars to choose from; those that are not one token after a space, as singular and with
            an -s, are left out.
        template: with `{subject}`, `{preposition}` and `{place}`.

    Raises:
        PromptPairError: no subject is one token in both numbers, or the model shows it on too few pairs.

    Source: Linzen et al. 2016, "Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies"; as a
    test of features, Marks et al. 2024, "Sparse Feature Circuits".
    """
    known = [word for word in subjects if is_one_word(model, word) and is_one_word(model, f"{word}s")]
    if not known:
        raise PromptPairError(
            f"subject–verb agreement needs nouns of one token; with the tokenizer of {model.name} none of "
            f"{len(subjects)} subjects is one as a singular and as a plural. Give others in subjects=."
        )

    def candidates() -> Iterator[PromptPair]:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS_PER_PAIR * n):
            subject, place = str(rng.choice(known)), str(rng.choice(PLACES))
            preposition, (plural, singular) = str(rng.choice(PREPOSITIONS)), VERBS[rng.integers(len(VERBS))]
            clean, corrupted = (
                template.format(subject=noun, preposition=preposition, place=place)
                for noun in (f"{subject}s", subject)
            )
            yield PromptPair(
                clean=clean,
                corrupted=corrupted,
                answer=f" {plural}",
                foil=f" {singular}",
                name=f"{subject}s {preposition} the {place}, {plural}, not {singular}",
            )

    return select_pairs(
        model, candidates(), Selection(n, shown, one_length, apart_from), what="subject–verb agreement"
    )

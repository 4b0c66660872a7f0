"""Facts: a subject is given, its attribute follows, as a landmark's city or a country's capital."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.making import is_one_word, row_of, rows_of
from mlxterp.errors import PromptPairError

Fact = tuple[str, str]

LANDMARKS: tuple[Fact, ...] = (
    ("Eiffel Tower", "Paris"),
    ("Colosseum", "Rome"),
    ("Brandenburg Gate", "Berlin"),
    ("Prado Museum", "Madrid"),
    ("Parthenon", "Athens"),
    ("Hagia Sophia", "Istanbul"),
    ("Hofburg Palace", "Vienna"),
    ("Van Gogh Museum", "Amsterdam"),
    ("La Scala", "Milan"),
    ("Forbidden City", "Beijing"),
    ("Sistine Chapel", "Rome"),
    ("Reichstag", "Berlin"),
    ("Oriental Pearl Tower", "Shanghai"),
    ("Sorbonne", "Paris"),
    ("Trevi Fountain", "Rome"),
    ("Moulin Rouge", "Paris"),
    ("Louvre", "Paris"),
    ("Acropolis", "Athens"),
    ("Kremlin", "Moscow"),
    ("British Museum", "London"),
    ("Willis Tower", "Chicago"),
    ("White House", "Washington"),
    ("Western Wall", "Jerusalem"),
    ("Harbour Bridge", "Sydney"),
    ("Globe Theatre", "London"),
    ("Roman Forum", "Rome"),
    ("Buckingham Palace", "London"),
    ("Tiananmen Square", "Beijing"),
    ("Sagrada Familia", "Barcelona"),
    ("Rijksmuseum", "Amsterdam"),
    ("Rialto Bridge", "Venice"),
    ("St Mark's Basilica", "Venice"),
    ("Dome of the Rock", "Jerusalem"),
    ("Grand Bazaar", "Istanbul"),
    ("Burj Khalifa", "Dubai"),
    ("Uffizi Gallery", "Florence"),
)
"""Landmarks and their cities; no landmark's name holds its city's."""

CAPITALS: tuple[Fact, ...] = (
    ("France", "Paris"),
    ("Italy", "Rome"),
    ("Germany", "Berlin"),
    ("Spain", "Madrid"),
    ("Greece", "Athens"),
    ("Austria", "Vienna"),
    ("China", "Beijing"),
    ("Japan", "Tokyo"),
    ("Russia", "Moscow"),
    ("Poland", "Warsaw"),
    ("Ireland", "Dublin"),
    ("Portugal", "Lisbon"),
    ("Sweden", "Stockholm"),
    ("Norway", "Oslo"),
    ("Egypt", "Cairo"),
    ("Iraq", "Baghdad"),
    ("Iran", "Tehran"),
    ("Cuba", "Havana"),
    ("Canada", "Ottawa"),
    ("Kenya", "Nairobi"),
    ("India", "Delhi"),
    ("Turkey", "Ankara"),
    ("Thailand", "Bangkok"),
    ("Syria", "Damascus"),
    ("Hungary", "Budapest"),
    ("Lebanon", "Beirut"),
)
"""Countries and their capitals; no country's name holds its capital's."""


def factual_recall_pairs(
    model: InterpretableModel,
    facts: Iterable[Fact] = LANDMARKS,
    *,
    template: str = "The {} is located in the city of",
) -> list[PromptPair]:
    """Pairs that differ in the subject only (Eiffel Tower, Colosseum); each couple in both directions.

    Subjects are grouped by the token length of their prompt, and the group with the most couples is used.
    Costs one forward per subject of the groups that are tried. Couples do not share subjects, so the first
    and the second half of the list are about different subjects.

    Args:
        facts: subject and attribute; an attribute that is not one token (with its leading space) is left out.
        template: `{}` stands for the subject; the attribute follows the prompt's last token.

    Raises:
        PromptPairError: there are not two subjects of one length that the model tells apart.
    """
    usable = [fact for fact in facts if is_one_word(model, fact[1])]
    by_length: dict[int, list[Fact]] = defaultdict(list)
    for fact in usable:
        if (tokens := row_of(model, template.format(fact[0]))) is not None:
            by_length[tokens.shape[1]].append(fact)
    best: list[PromptPair] = []
    for group in sorted(by_length.values(), key=len, reverse=True):
        if len(group) // 2 * 2 > len(best):
            best = max(best, _couples(model, group, template), key=len)
    if not best:
        raise PromptPairError(
            f"{model.name} tells no two of these {len(usable)} subjects apart that have the same number of "
            f"tokens in {template!r}. Give other facts or another template, or a model that knows them."
        )
    return best


def capitals_pairs(
    model: InterpretableModel,
    facts: Iterable[Fact] = CAPITALS,
    *,
    template: str = "The capital of {} is the city of",
) -> list[PromptPair]:
    """Pairs that differ in the country only (France, Italy), as `factual_recall_pairs` of other facts.

    Args:
        facts: country and capital.
        template: `{}` stands for the country; the capital follows the prompt's last token.

    Raises:
        PromptPairError: there are not two countries of one token length that the model tells apart.
    """
    return factual_recall_pairs(model, facts, template=template)


def _couples(model: InterpretableModel, facts: Sequence[Fact], template: str) -> list[PromptPair]:
    """Disjoint couples of facts that the model tells apart, each as two pairs."""
    prompts = [template.format(subject) for subject, _ in facts]
    answers = np.array([model.to_single_token(f" {attribute}") for _, attribute in facts])
    logits = sweep.answer_logits(model, np.concatenate([rows_of(model, prompt) for prompt in prompts]))[
        :, answers
    ]
    free = list(range(len(facts)))
    pairs: list[PromptPair] = []
    while free:
        a = free.pop(0)
        for b in free:
            if logits[a, a] > logits[a, b] and logits[b, b] > logits[b, a]:
                free.remove(b)
                pairs += [
                    PromptPair(
                        clean=prompts[i],
                        corrupted=prompts[j],
                        answer=f" {facts[i][1]}",
                        foil=f" {facts[j][1]}",
                        name=f"{facts[i][0]} / {facts[j][0]}",
                    )
                    for i, j in ((a, b), (b, a))
                ]
                break
    return pairs

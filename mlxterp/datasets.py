"""Prompt pairs for the behaviours that the scaffolds ask about, made for the model and tokenizer at hand.

Every function returns pairs of one token length, with answers and foils of one token, on which the model
shows the
behaviour: it prefers the answer after the clean prompt and the foil after the corrupted one. What does not
    live here: measuring (`mlxterp.causal`). A new behaviour is one function that makes candidates and hands
    them to `_shown_by`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mlxterp.causal import sweep
from mlxterp.causal.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Tokens
from mlxterp.errors import PromptPairError, TokenError
from mlxterp.toy_circuit import WORDS

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
    usable = [fact for fact in facts if _is_one_token(model, fact[1])]
    by_length: dict[int, list[Fact]] = defaultdict(list)
    for fact in usable:
        if (tokens := _tokens(model, template.format(fact[0]))) is not None:
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


def repeated_random_pairs(
    model: InterpretableModel, n: int = 16, *, period: int = 12, seed: int = 0
) -> list[PromptPair]:
    """Random words that begin to repeat: `… dog salt … lake tree … dog` is continued with `salt`.

    In the corrupted prompt the words before the answer and before the foil have changed places (`… lake salt
    … dog tree … dog`), so the same repetition is continued with the foil: `tree`. Both prompts hold the same
    words, and a head that attends a fixed distance back sees the same word in both. In every pair the same
    positions change.

    Args:
        n: how many pairs.
        period: how many words, all different, before they repeat; at least 6.
        seed: of the words.

    Raises:
        PromptPairError: the tokenizer has too few of the words as one token, or the model does not continue
            repetitions.
    """
    words = [word for word in WORDS if _is_one_token(model, word)]
    if not 6 <= period <= len(words):
        raise PromptPairError(
            f"period={period}: sequences are made of 6 to {len(words)} different words, those that are one "
            f"token each for {model.name}. Choose a period in that range."
        )
    query, other = period // 4, 2 * period // 3
    rng = np.random.default_rng(seed)
    found: list[PromptPair] = []
    for _ in range(4):  # a real model fails on some: draw again, a few times
        drawn = [rng.choice(words, size=period, replace=False).tolist() for _ in range(n)]
        found += _shown_by(model, [_repetition(each, query, other) for each in drawn])
        if len(found) >= n:
            return found[:n]
    raise PromptPairError(
        f"{model.name} continues {len(found)} of {4 * n} repeated sequences of {period} words, and {n} "
        "pairs were asked for. Ask for fewer pairs or another period; or the model has no such behaviour."
    )


def _repetition(words: Sequence[str], query: int, other: int) -> PromptPair:
    changed = list(words)
    changed[query], changed[other] = words[other], words[query]
    repeat = list(words[: query + 1])
    return PromptPair(
        clean=" " + " ".join([*words, *repeat]),
        corrupted=" " + " ".join([*changed, *repeat]),
        answer=f" {words[query + 1]}",
        foil=f" {words[other + 1]}",
        name=f"after {words[query]}",
    )


def _couples(model: InterpretableModel, facts: Sequence[Fact], template: str) -> list[PromptPair]:
    """Disjoint couples of facts that the model tells apart, each as two pairs."""
    prompts = [template.format(subject) for subject, _ in facts]
    answers = np.array([model.to_single_token(f" {attribute}") for _, attribute in facts])
    logits = sweep.answer_logits(model, np.concatenate([_rows(model, prompt) for prompt in prompts]))[
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


def _shown_by(model: InterpretableModel, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """Those pairs on which the clean run prefers the answer and the corrupted run the foil."""
    clean, corrupted = (
        sweep.answer_logits(model, np.concatenate([_rows(model, prompt) for prompt in prompts]))
        for prompts in ([pair.clean for pair in pairs], [pair.corrupted for pair in pairs])
    )
    kept = []
    for pair, c, x in zip(pairs, clean, corrupted, strict=True):
        answer, foil = (
            t if isinstance(t, int) else model.to_single_token(t or "") for t in (pair.answer, pair.foil)
        )
        if c[answer] > c[foil] and x[answer] < x[foil]:
            kept.append(pair)
    return kept


def _rows(model: InterpretableModel, prompt: str | Sequence[int]) -> Tokens:
    tokens = model.to_tokens(prompt)
    assert not isinstance(tokens, list)
    return tokens


def _tokens(model: InterpretableModel, text: str) -> Tokens | None:
    """The tokens of a text, or None where a tokenizer has none for it."""
    try:
        return _rows(model, text)
    except TokenError:
        return None


def _is_one_token(model: InterpretableModel, word: str) -> bool:
    try:
        model.to_single_token(f" {word}")
    except TokenError:
        return False
    return True

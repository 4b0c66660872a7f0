"""A set of tokens as a phrase of a few words: by the classes that most of it is of, commonest tokens first.

`phrase(["had", "have", "has", "been", "is", …])` is `auxiliary verbs such as "had", "have", "has"`.
A set that is longer than a reader takes in, and of no class, has no phrase: the offline labeler gives it no
label.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from mlxterp.auto_interp.evidence.token_view import CLASSES, SPACED, fold

LISTED = 4
"""So many tokens are listed as they are."""

SPELLED_OUT = 8
"""A set of so many tokens may be listed where it is of no class."""

COVERED = 0.55
"""The share of a set, commonest tokens counting most, that its classes must make up."""

_WORTH = 0.15  # what a second class must add
_EXAMPLES = 3
_FLATTEN = 1  # the token of rank r counts 1 / (r + this)

_WORD_CLASSES = {
    "articles": "a an the",
    "possessives": "my your his her its our their whose mine yours hers ours theirs",
    "personal pronouns": """
        i you he she it we they me him her us them myself yourself himself herself itself
        ourselves themselves one""",
    "forms of to be": "be is are was were been being am 's 're 'm",
    "forms of to have": "have has had having 've 'd",
    "modal verbs": "will would can could may might must shall should ought cannot need 'll",
    "negations": """
        not no never none nothing nor neither n't without cannot nobody nowhere don doesn didn isn
        wasn""",
    "demonstratives": "this that these those such here there same",
    "quantifiers": """
        all some any each every both many much several few more most less least enough another
        other either neither no half lot none various certain""",
    "number words": """
        one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty
        hundred thousand million billion dozen first second third fourth fifth sixth half zero
        single double""",
    "question and relative words": "who whom whose which what when where why how whether that",
    "prepositions": """
        of in to for with on at by from about into over after under between through during before
        without within upon among against toward towards across behind beyond near since until
        above below along around off out up down per via as like than onto inside outside beside
        besides""",
    "conjunctions": """
        and or but nor so yet because although though while if unless whereas when where since
        that as than whether however therefore thus then &""",
    "months and days": """
        january february march april may june july august september october november december
        monday tuesday wednesday thursday friday saturday sunday""",
    "words of time": """
        day days week weeks month months year years time times hour hours minute minutes second
        seconds night morning evening today tomorrow yesterday now then ago soon later always
        often sometimes once again early late when moment period century old new age long since
        until before after""",
    "titles of persons": """
        mr mrs miss ms dr sir lady lord king queen captain colonel president general madam""",
    "words for people": """
        man men woman women mother father sister brother son daughter wife husband child children
        people person persons lady ladies gentleman girl girls boy boys friend friends family aunt
        uncle cousin parents mother mamma papa everybody somebody nobody anyone everyone someone
        fellow neighbour""",
    "verbs of speech": """
        say said says saying tell told tells ask asked asks reply replied answer answered speak
        spoke cried cry talk talked call called declare declared explain explained express
        expressed add added""",
    "verbs of thought and feeling": """
        think thought know knew known feel felt believe believed hope hoped wish wished suppose
        supposed understand understood want wanted like liked love loved see saw seem seemed find
        found mean meant remember fear feared doubt consider considered expect expected sure glad
        afraid""",
    "adverbs of degree": """
        very so too quite more most less rather just only even almost really much well still also
        always extremely perfectly""",
    "keywords of code": """
        def return if else elif for while import from class self none true false try except raise
        lambda with pass yield assert finally global del isinstance not in is and or cls args
        kwargs""",
    "words of legal text": """
        license licence copyright copy copies work works software program source notice terms
        conditions warranty liability rights party parties agreement shall use distribute modify
        permission granted version derivative contributor patent provided distribution
        redistribute""",
    "words of programming": """
        value values function method class object objects file files string strings list argument
        arguments type name names key code data path line module default return returns int str
        bytes set index item items error format option options attribute dictionary dict tuple
        sequence iterator""",
}
_ENDINGS = {
    "words ending in -ing": "ing",
    "words ending in -ed": "ed",
    "words ending in -ly": "ly",
    "words ending in -tion or -sion": "tion|sion",
    "words ending in -ment": "ment",
    "words ending in -able or -ible": "able|ible",
    "words ending in -s": "s",
    "words ending in -er": "er",
}
_OF_CHARACTERS = (
    "digits",
    "sentence_end",
    "comma",
    "quote",
    "bracket",
    "newline",
    "blank",
    "operator",
    "punctuation",
)
_AUXILIARIES = ("forms of to be", "forms of to have", "modal verbs")


@dataclass(frozen=True)
class _WordClass:
    """A class of tokens: its name, whether a token is of it, whether examples are given with it."""

    name: str
    holds: Callable[[str], bool]
    examples: bool = True


@cache
def _classes() -> tuple[_WordClass, ...]:
    """From the narrowest to the widest: of classes that cover as much, the first is taken."""
    sets = {name: frozenset(words.split()) for name, words in _WORD_CLASSES.items()}
    auxiliaries = frozenset().union(*(sets[name] for name in _AUXILIARIES), {"do", "does", "did", "don"})
    determiners = sets["articles"] | sets["possessives"] | sets["demonstratives"] | sets["quantifiers"]
    found = [_WordClass(name, words.__contains__) for name, words in sets.items()]
    found += [
        _WordClass("auxiliary verbs", auxiliaries.__contains__),
        _WordClass("determiners", determiners.__contains__),
        _WordClass("pronouns", (sets["personal pronouns"] | sets["possessives"]).__contains__),
    ]
    found += [_of_characters(name) for name in _OF_CHARACTERS]
    found += [_WordClass(name, _ends_in(ending)) for name, ending in _ENDINGS.items()]
    found.append(_WordClass("single letters", lambda text: len(text) == 1 and text.isalpha()))
    found.append(_of_characters("non_latin"))
    return tuple(found)


def _names(spelled: Mapping[str, str]) -> _WordClass:
    """Capitalised words that are of no other class."""
    common = frozenset(word for words in _WORD_CLASSES.values() for word in words.split())
    return _WordClass(
        "names and other capitalised words",
        lambda text: len(text) > 1 and spelled[text][0].isupper() and text not in common,
    )


def _of_characters(name: str) -> _WordClass:
    test, words = CLASSES[name]
    if name in SPACED:
        return _WordClass(words, lambda text: not text.strip() and test(text), examples=False)
    return _WordClass(words, test, examples=name not in ("digits", "sentence_end", "quote", "bracket"))


@lru_cache(maxsize=4096)
def phrase(tokens: tuple[str, ...]) -> str | None:
    """What most of these tokens have in common, in a few words; None where there is nothing.

    Args:
        tokens: commonest first, as in a rule.
    """
    spelled = {fold(token): token.strip() or token for token in reversed(tokens)}
    folded = tuple(dict.fromkeys(fold(token) for token in tokens))
    weights = {text: 1 / (rank + _FLATTEN) for rank, text in enumerate(folded)}
    whole, left = sum(weights.values()), dict(weights)
    chosen: list[_WordClass] = []
    names = _names(spelled)
    for least in (2 * _WORTH, _WORTH):
        best = _widest(left, names)
        if _weight(best, left) < least * whole or sum(map(best.holds, left)) < 2:
            break
        chosen.append(best)
        left = {text: weight for text, weight in left.items() if not best.holds(text)}
    if chosen and 1 - sum(left.values()) / whole >= COVERED:
        named = " and ".join(each.name for each in chosen)
        examples = [text for text in folded if any(c.examples and c.holds(text) for c in chosen)][:_EXAMPLES]
        return f"{named} such as {', '.join(map(quoted, examples))}" if examples else named
    return None


def _widest(left: Mapping[str, float], names: _WordClass) -> _WordClass:
    """The class with most weight among these texts, to two digits; of equal ones the first."""
    classes = _classes()
    found = [0.0] * len(classes)
    for text, weight in left.items():
        for i in _classes_of(text):
            found[i] += weight
    every = [*found, _weight(names, left)]
    best = max(range(len(every)), key=lambda i: round(every[i], 2))
    return names if best == len(classes) else classes[best]


@lru_cache(maxsize=1 << 16)
def _classes_of(text: str) -> tuple[int, ...]:
    """The numbers of the classes that a token is of."""
    return tuple(i for i, each in enumerate(_classes()) if each.holds(text))


def _weight(of: _WordClass, left: Mapping[str, float]) -> float:
    return sum(weight for text, weight in left.items() if of.holds(text))


def quoted(token: str) -> str:
    """A token between quotation marks, with line breaks escaped."""
    shown = (
        token.replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\t", "\\t")
        .replace("\r", "\\r")
    )
    return f'"{shown}"'


def _ends_in(ending: str) -> Callable[[str], bool]:
    pattern = re.compile(rf"[^\W\d_]{{2,}}(?:{ending})")
    return lambda text: pattern.fullmatch(text) is not None

# ruff: noqa: T201 - a command that prints
"""Texts of five kinds, to see what of an SAE and its labels holds on another kind of text.

    novels      Jane Austen, documents that the SAE that ships never saw
    brown       edited American English of 1961, documents that it never saw
    code        source files of Python's standard library without their docstrings
    docstrings  documentation in Python's standard library (`mlxterp.datasets.documentation_texts`)
    licences    licences of installed packages and of the system, each wording once

The first two are the kinds it was trained on; the others are not. What is installed differs between
machines, and so do the last three.

`python -m tests.benchmarks.domains` labels the SAE that ships on each kind, scores the labels on the others,
and prints two calibrations: of `confidence.elsewhere`, fitted without the kind it is tested on, and of
`recalibrate_confidence`, which looks at some tokens of that kind, in other documents than those it is tested
on. Takes about 8 CPU min; stores are kept in the user cache.
"""

from __future__ import annotations

import argparse
import re
import sysconfig
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from mlxterp.auto_interp.confidence import GOOD, FourCounts, kind_of_text, on_kind
from mlxterp.auto_interp.evidence.corpus import Corpus, Half
from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.evidence.token_draw import draw
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun
from mlxterp.auto_interp.rules.rules import Rule
from mlxterp.auto_interp.scores import balanced_accuracy
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import documentation_texts
from mlxterp.sae import bundled_sae, cached_store
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE
from mlxterp.text import percent
from tests.benchmarks.corpora import austen
from tests.benchmarks.sae_smollm2 import documents

TRAINED_ON = ("novels", "brown")
OTHERS = ("code", "docstrings", "licences")
WORDS = 14_000
"""Words of a kind for the calibration: 17,000 to 49,000 tokens."""
WORDS_TO_READ = 32_000
"""Words of a kind for labels that are read: about 40,000 tokens."""

_DOCUMENT = 220  # words
_DOCSTRING = re.compile(r'[rbuRBU]*("""|\'\'\').*?\1', re.DOTALL)
_WORD = re.compile(r"\w+")


@cache
def texts(kind: str, most: int = WORDS) -> tuple[str, ...]:
    """Documents of a kind in a fixed random order, so many words in all.

    Raises:
        KeyError: there is no such kind.
    """
    make = {
        "novels": lambda: _unseen(austen()),
        "brown": lambda: _unseen_brown(),
        "code": _code,
        "docstrings": documentation_texts,
        "licences": _licences,
    }[kind]
    every = list(make())
    chosen, words = [], 0
    for i in np.random.default_rng(0).permutation(len(every)):
        if words >= most:
            break
        chosen.append(every[i])
        words += len(every[i].split())
    return tuple(chosen)


def _held_out() -> set[str]:
    return set(documents()[1])


def _unseen(every: Iterable[str]) -> list[str]:
    held = _held_out()
    return [text for text in every if text in held]


def _unseen_brown() -> list[str]:
    novels = set(austen())
    return [text for text in documents()[1] if text not in novels]


def _code() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in library.glob("*.py") if path.stat().st_size > 2_000)
    sources = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return [part for source in sources for part in _parts(_DOCSTRING.sub("", source))]


def _licences() -> list[str]:
    places = [Path(sysconfig.get_paths()["purelib"]), Path("/usr/share/common-licenses")]
    files = sorted(
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and re.search(r"licen[cs]e|copying|notice|^[AGLMBC][A-Z]+-[\d.]+$", path.name, re.I)
        if path.suffix not in {".py", ".pyc", ".json"} and path.stat().st_size < 200_000
    )
    seen: set[str] = set()
    kept = []
    for path in files:
        for paragraph in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")):
            bare = " ".join(_WORD.findall(paragraph.casefold()))
            if len(bare.split()) >= 12 and bare not in seen:
                seen.add(bare)
                kept.append(re.sub(r"\s+", " ", paragraph).strip())
    return _joined(kept)


def _parts(content: str) -> list[str]:
    return _joined(re.split(r"\n\s*\n", content), "\n\n")


def _joined(paragraphs: Iterable[str], between: str = " ") -> list[str]:
    found: list[str] = []
    waiting: list[str] = []
    for paragraph in paragraphs:
        waiting.append(paragraph)
        if sum(len(each.split()) for each in waiting) >= _DOCUMENT:
            found.append(between.join(waiting))
            waiting = []
    return found


class Transfer(NamedTuple):
    """One label: made on a kind of text, scored there and on another kind.

    Attributes:
        here: counts where it was made and tested.
        seen: at `LOOKED_AT` tokens of half of the other kind's documents.
        held: whether its balanced accuracy on the other half was good.
    """

    made_on: str
    tested_on: str
    here: FourCounts
    seen: FourCounts
    held: bool


LOOKED_AT = 20
"""Tokens of a kind at which each feature fires that `recalibrate_confidence` looks at, and as many others."""


def transfers() -> list[Transfer]:
    """Every label of the SAE that ships on every other kind with 20 tokens of each class."""
    model, sae, every = InterpretableModel("smollm2-135m"), bundled_sae(), (*TRAINED_ON, *OTHERS)
    corpora = {kind: Corpus(stored(model, sae, kind)) for kind in every}
    found = []
    for kind, corpus in corpora.items():
        run = OfflineRun(corpus, Sampling())
        for feature in range(sae.d_sae):
            label = run.label(feature, Promotion({}, {}), {})
            if label.label is None or label.rule is None:
                continue
            score = label.scores["rule"]
            here = (
                score.true_positives,
                score.false_negatives,
                score.true_negatives,
                score.false_positives,
            )
            for other in every:
                if other == kind:
                    continue
                held = _counts(corpora[other], feature, label.rule, "test", 500)
                if min(held[0] + held[1], held[2] + held[3]) >= 20:
                    seen = _counts(corpora[other], feature, label.rule, "train", LOOKED_AT)
                    found.append(Transfer(kind, other, here, seen, balanced_accuracy(*held) >= GOOD))
        print(f"{kind}: {len([each for each in found if each.made_on == kind])} labels on others", flush=True)
    return found


def stored(model: InterpretableModel, sae: SAE, kind: str) -> FeatureStore:
    return cached_store(model, sae, texts(kind), batch_tokens=1024)


def _counts(corpus: Corpus, feature: int, rule: Rule, half: Half, most: int) -> FourCounts:
    drawn = draw(corpus, feature, half, most=most)
    holds = rule.holds(corpus.view, drawn.index)
    yes, no = holds[drawn.fires], holds[~drawn.fires]
    return int(yes.sum()), int((~yes).sum()), int((~no).sum()), int(no.sum())


def stated(shift: float, spread: float, of: list[Transfer]) -> np.ndarray:
    """What `confidence.elsewhere` states with this shift and spread."""
    counts = np.array([each.here for each in of], dtype=np.float64).reshape(-1, 2, 2) + 1
    a, b = counts[..., 0], counts[..., 1]
    mean = (a / (a + b)).mean(axis=1)
    variance = (a * b / ((a + b) ** 2 * (a + b + 1))).sum(axis=1) / 4
    return norm.cdf((mean - GOOD - shift) / np.sqrt(variance + spread**2))


def fitted(of: list[Transfer]) -> tuple[float, float]:
    """The shift and the spread under which what held is likeliest."""
    held = np.array([each.held for each in of])

    def surprise(given: np.ndarray) -> float:
        p = np.clip(stated(given[0], np.exp(given[1]), of), 1e-6, 1 - 1e-6)
        return -float(np.where(held, np.log(p), np.log(1 - p)).mean())

    best = minimize(surprise, [0.05, -2.0], method="Nelder-Mead").x
    return float(best[0]), float(np.exp(best[1]))


def stated_on(of: list[Transfer]) -> np.ndarray:
    """What `recalibrate_confidence` states of labels tested on one kind, made on one kind at a time."""
    found = np.zeros(len(of))
    for kind in {each.made_on for each in of}:
        places = [i for i, each in enumerate(of) if each.made_on == kind]
        learnt = kind_of_text([of[i].here for i in places], [of[i].seen for i in places])
        for i in places:
            found[i] = on_kind(of[i].here, of[i].seen, learnt)
    return found


def table(name: str, by_kind: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Prints what was stated and what held, by fifths of the probability and kind of text."""
    print(f"\n{name}\n\n| stated | {' | '.join(by_kind)} |\n|---|{'---|' * len(by_kind)}")
    worst = dict.fromkeys(by_kind, 0.0)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        cells = []
        for kind, (p, held) in by_kind.items():
            inside = (p >= low) & ((p < low + 0.2) | (low == 0.8))
            n, gap = int(inside.sum()), 0.0
            if n:
                gap = abs(p[inside].mean() - held[inside].mean())
            if n >= 30:
                worst[kind] = max(worst[kind], gap)
            shown = f"{p[inside].mean():.2f} → {held[inside].mean():.2f} of {n}" if n else "none"
            cells.append(f"**{shown}**" if n >= 30 and gap > 0.1 else shown)
        print(f"| {low:.1f} to {low + 0.2:.1f} | {' | '.join(cells)} |")
    print("| worst of 30 or more | " + " | ".join(f"{gap:.2f}" for gap in worst.values()) + " |", flush=True)


def some_labels(kind: str, n: int = 40) -> None:
    """Random labels of the SAE that ships, with their strongest examples, as a table to judge by reading."""
    model, sae = InterpretableModel("smollm2-135m"), bundled_sae()
    run = OfflineRun(Corpus(cached_store(model, sae, texts(kind, WORDS_TO_READ))), Sampling())
    began = time.process_time()
    every = [run.label(feature, Promotion({}, {}), {}) for feature in range(sae.d_sae)]
    print(f"{len(every)} labels in {time.process_time() - began:.1f} CPU s")
    given = [label for label in every if label.label is not None]
    for i in np.random.default_rng(0).permutation(len(given))[:n]:
        label, shown = given[i], []
        for window in label.evidence[:3]:
            before = "".join(window.tokens[max(0, window.peak - 4) : window.peak])
            after = "".join(window.tokens[window.peak + 1 : window.peak + 3])
            shown.append(f"{before}«{window.tokens[window.peak]}»{after}")
        cells = (f"f{label.feature_id}", label.label, percent(label.confidence), " · ".join(shown))
        print(f"| {' | '.join(str(cell) for cell in cells)} |".replace("\n", "↵"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--labels", choices=(*TRAINED_ON, *OTHERS), help="only print 40 labels on a kind")
    arguments = parser.parse_args()
    if arguments.labels:
        some_labels(arguments.labels)
        return
    every = transfers()
    kinds = (*OTHERS, *TRAINED_ON)
    on = {kind: [each for each in every if each.tested_on == kind] for kind in kinds}
    held = {kind: np.array([each.held for each in of]) for kind, of in on.items()}
    without = {
        kind: fitted([each for each in every if kind not in (each.made_on, each.tested_on)]) for kind in kinds
    }
    table(
        "confidence.elsewhere, fitted without the kind",
        {kind: (stated(*without[kind], of), held[kind]) for kind, of in on.items()},
    )
    table(
        f"recalibrate_confidence, {LOOKED_AT} tokens of the kind looked at",
        {kind: (stated_on(of), held[kind]) for kind, of in on.items()},
    )
    print("all kinds: shift {:.3f}, spread {:.3f}".format(*fitted(every)))


if __name__ == "__main__":
    main()

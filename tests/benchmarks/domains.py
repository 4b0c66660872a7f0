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
and prints the calibration of `confidence.elsewhere`, fitted without the kind it is tested on. Takes 15 to 40
min; stores are kept in the user cache.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from mlxterp.auto_interp.confidence import GOOD
from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import Sampling
from mlxterp.auto_interp.label import Score
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun, score_rule
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import documentation_texts
from mlxterp.sae import bundled_sae, cached_store
from tests.benchmarks.corpora import austen
from tests.benchmarks.sae_smollm2 import documents

TRAINED_ON = ("novels", "brown")
OTHERS = ("code", "docstrings", "licences")
WORDS = 32_000
"""Words of a kind: about 40,000 tokens."""

_DOCUMENT = 220  # words
_DOCSTRING = re.compile(r'[rbuRBU]*("""|\'\'\').*?\1', re.DOTALL)
_WORD = re.compile(r"\w+")


@cache
def texts(kind: str) -> tuple[str, ...]:
    """Documents of a kind in a fixed random order, `WORDS` words in all.

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
        if words >= WORDS:
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
    """One label: made on a kind of text, scored there and on another kind."""

    made_on: str
    tested_on: str
    mean: float
    deviation: float
    held: bool


def transfers() -> list[Transfer]:
    """Every label of the SAE that ships on every other kind with 20 tokens of each class."""
    model, sae, every = InterpretableModel("smollm2-135m"), bundled_sae(), (*TRAINED_ON, *OTHERS)
    corpora = {kind: Corpus(cached_store(model, sae, texts(kind))) for kind in every}
    found = []
    for kind, corpus in corpora.items():
        run = OfflineRun(corpus, Sampling())
        for feature in range(sae.d_sae):
            label = run.label(feature, Promotion({}, {}), {})
            if label.rule is None:
                continue
            mean, deviation = _posterior(label.scores["rule"])
            for other in every:
                score = score_rule(corpora[other], feature, label.rule)["rule"]
                positives = score.true_positives + score.false_negatives
                negatives = score.true_negatives + score.false_positives
                if other != kind and min(positives, negatives) >= 20 and score.balanced_accuracy is not None:
                    held = score.balanced_accuracy >= GOOD
                    found.append(Transfer(kind, other, mean, deviation, held))
        print(f"{kind}: {len([each for each in found if each.made_on == kind])} labels on others", flush=True)
    return found


def _posterior(score: Score) -> tuple[float, float]:
    pairs = ((score.true_positives, score.false_negatives), (score.true_negatives, score.false_positives))
    a = np.array([pair[0] + 1 for pair in pairs])
    b = np.array([pair[1] + 1 for pair in pairs])
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    return float((a / (a + b)).mean()), float(np.sqrt(variance.sum()) / 2)


def stated(shift: float, spread: float, of: list[Transfer]) -> np.ndarray:
    mean, deviation = (np.array([getattr(each, name) for each in of]) for name in ("mean", "deviation"))
    return norm.cdf((mean - GOOD - shift) / np.hypot(deviation, spread))


def fitted(of: list[Transfer]) -> tuple[float, float]:
    """The shift and the spread under which what held is likeliest."""
    held = np.array([each.held for each in of])

    def surprise(given: np.ndarray) -> float:
        p = np.clip(stated(given[0], np.exp(given[1]), of), 1e-6, 1 - 1e-6)
        return -float(np.where(held, np.log(p), np.log(1 - p)).mean())

    best = minimize(surprise, [0.05, -2.0], method="Nelder-Mead").x
    return float(best[0]), float(np.exp(best[1]))


def main() -> None:
    every = transfers()
    for kind in (*TRAINED_ON, *OTHERS):
        shift, spread = fitted([each for each in every if kind not in (each.made_on, each.tested_on)])
        tested = [each for each in every if each.tested_on == kind]
        p, held = stated(shift, spread, tested), np.array([each.held for each in tested])
        print(f"{kind}: shift {shift:.3f}, spread {spread:.3f}")
        for low in (0.0, 0.2, 0.4, 0.6, 0.8):
            inside = (p >= low) & (p < low + 0.2)
            if inside.any():
                print(
                    f"  {low:.1f} to {low + 0.2:.1f}: {inside.sum()} labels, stated {p[inside].mean():.2f}, "
                    f"held {held[inside].mean():.2f}"
                )
    print("all kinds: shift {:.3f}, spread {:.3f}".format(*fitted(every)))


if __name__ == "__main__":
    main()

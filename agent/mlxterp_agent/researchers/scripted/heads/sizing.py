"""How large an experiment may be: which layers and how many pairs, for a model of this size.

The pairs are split once: the first half is for searching, the second for tests that the search has not seen.
"""

from __future__ import annotations

from mlxterp_agent.researchers.scripted.heads.criteria import DIRECT, MOST_LAYERS, WORK
from mlxterp_agent.researchers.scripted.heads.facts import (
    Facts,
    Head,
    heads_of,
    moving_layer,
    sites,
)
from mlxterp_agent.researchers.scripted.plan import Known


def critical_layers(known: Known, facts: Facts) -> list[int]:
    """The layers whose heads are worth patching one by one, most promising first.

    Those whose attention recovers something, those whose heads write the answer directly, and the one that
    moves it. In a small model, all.
    """
    if facts.n_layers <= MOST_LAYERS:
        return list(range(facts.n_layers))
    scores: dict[int, float] = {}
    for site in sites(known, "attention"):
        scores[int(site["layer"])] = max(scores.get(int(site["layer"]), 0.0), float(site["recovery"]))
    if direct := known.numbers("attribution"):
        for name, written in direct["heads"].items():
            share = abs(written / direct["total"]) if direct["total"] else 0.0
            if share >= DIRECT:
                layer = heads_of([name])[0][0]
                scores[layer] = max(scores.get(layer, 0.0), share)
    moving = moving_layer(known, facts)
    if moving is not None:
        scores[moving] = 1.0
        if known.numbers("attention") is None:  # then its neighbours are the next best guess
            scores |= {near: 0.5 for near in (moving - 1, moving + 1) if 0 <= near < facts.n_layers}
    return sorted(scores, key=lambda layer: (-scores[layer], layer))[:MOST_LAYERS]


def _rows(facts: Facts, attempt: int) -> int:
    """How many patched rows a sweep may have: WORK, and a quarter of it after a failure."""
    of_one = facts.n_layers * facts.d_model**2 * facts.n_tokens
    return max(1, int(WORK / of_one / 4 ** (attempt - 1)))


def swept_pairs(facts: Facts, per_pair: int, attempt: int) -> str:
    """The slice of pairs to search on: as many as the sweep may have rows for."""
    return first_pairs(facts, _rows(facts, attempt) // per_pair)


def first_pairs(facts: Facts, count: int) -> str:
    """The slice of `count` pairs to search on, at least two; every second where that reaches them.

    Neighbours in a dataset are often the same couple in both directions.
    """
    count = min(facts.explore, max(2, count))
    return f"[:{2 * count}:2]" if 2 * count <= facts.explore else f"[:{count}]"


def swept_layers(facts: Facts, per_layer: int, attempt: int) -> str:
    """The `layers=` argument: none for all layers, every second or third if two pairs of all are too many."""
    stride = -(-2 * facts.n_layers * per_layer // _rows(facts, attempt))
    return "" if stride <= 1 else f", layers=range(0, {facts.n_layers}, {min(stride, facts.n_layers)})"


def held_out_pairs(facts: Facts, attempt: int) -> str:
    """The slice of pairs that the search did not use; all of them where there are too few to hold any out."""
    start = facts.explore if facts.held_out else 0
    stop = "" if attempt == 1 else str(start + 4)
    return f"[{start or ''}:{stop}]" if start or stop else ""


def random_sets(facts: Facts, found: list[Head], wanted: int) -> int:
    """How many random sets of as many other heads to compare with: none if there are not enough heads."""
    return wanted if facts.n_layers * facts.n_heads >= 2 * len(found) else 0

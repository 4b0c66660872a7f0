"""The study of a behaviour that prompt pairs show: where it is carried, by which heads, and tests of that.

Contains: the steps, when each applies and how large its experiment may be. See `heads_log.py` for readings of
the log and the sentences of the conclusion, `templates/experiments/heads/` for hypotheses, thresholds and
code of the experiments; a threshold that also decides the next step is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from mlxterp_agent.researchers.scripted import heads_log as log
from mlxterp_agent.researchers.scripted.heads_log import (
    ACCURACY,
    KEPT,
    Facts,
    Head,
    facts_of,
    found_heads,
    heads_of,
    moving_layer,
    sites,
)
from mlxterp_agent.researchers.scripted.study import Condition, Progress, Skip, Step, Study, Values, listed

CARRIED = 0.2
"""Recovery at which a position carries the answer."""
DIRECT = 0.1
"""The least share of the logit difference that a head writes directly for its layer to be searched."""
MOST_POSITIONS = 4
"""How many positions are patched layer by layer, besides the last."""
MOST_LAYERS = 6
"""Number of layers whose heads are patched one by one."""
WORK = 1.2e11
"""Size of a sweep: rows × layers × d_model² × tokens. SmolLM2-135M and ten tokens: 1,200 rows."""


# When a step applies.


def _measurable(progress: Progress) -> Skip | None:
    facts = facts_of(progress)
    if not facts.shows_behaviour:
        return Skip("the model does not show the behaviour", lasting=True)
    return None if facts.n_pairs >= 2 else Skip("one pair gives no interval", lasting=True)


def _found(progress: Progress) -> Skip | None:
    return None if found_heads(progress) else Skip("no heads were found")


def _model_has(*names: str) -> Condition:
    """The condition that the model has these hook points or parts."""

    def condition(progress: Progress) -> Skip | None:
        lacking = [name for name in names if not facts_of(progress).has(name)]
        return Skip(f"the model has no {listed(lacking)}", lasting=True) if lacking else None

    return condition


# How large an experiment may be. The first half of the pairs is for searching, the second for tests.


def _most_rows(facts: Facts, attempt: int) -> int:
    """How many patched rows a sweep may have: WORK, and a quarter of it after a failure."""
    of_one = facts.n_layers * facts.d_model**2 * facts.n_tokens
    return max(1, int(WORK / of_one / 4 ** (attempt - 1)))


def _first_pairs(facts: Facts, count: int) -> str:
    """The slice of `count` pairs to search on, at least two; every second where that reaches them.

    Neighbours in a dataset are often the same couple in both directions.
    """
    count = min(facts.explore, max(2, count))
    return f"[:{2 * count}:2]" if 2 * count <= facts.explore else f"[:{count}]"


def _swept_pairs(facts: Facts, rows_per_pair: int, attempt: int) -> str:
    """The slice of pairs to search on, as many as the row limit allows."""
    return _first_pairs(facts, _most_rows(facts, attempt) // rows_per_pair)


def _swept_layers(facts: Facts, rows_per_layer: int, attempt: int) -> str:
    """The `layers=` argument: none for all layers, every second or third if two pairs of all are too many."""
    stride = -(-2 * facts.n_layers * rows_per_layer // _most_rows(facts, attempt))
    return "" if stride <= 1 else f", layers=range(0, {facts.n_layers}, {min(stride, facts.n_layers)})"


def _held_out_pairs(facts: Facts, attempt: int) -> str:
    """The slice of pairs that the search did not use; all of them where there are too few to hold any out."""
    start = facts.explore if facts.held_out else 0
    stop = "" if attempt == 1 else str(start + 4)
    return f"[{start or ''}:{stop}]" if start or stop else ""


def _random_sets(facts: Facts, found: list[Head], wanted: int) -> int:
    """How many random sets of as many other heads to compare with: none if there are not enough heads."""
    return wanted if facts.n_layers * facts.n_heads >= 2 * len(found) else 0


def _layers_to_search(progress: Progress) -> list[int]:
    """The layers whose heads are patched one by one, most promising first.

    Those whose attention recovers something, those whose heads write the answer directly, and the one that
    moves it. In a small model, all.
    """
    facts = facts_of(progress)
    if facts.n_layers <= MOST_LAYERS:
        return list(range(facts.n_layers))
    scores: dict[int, float] = {}
    for site in sites(progress, "attention"):
        scores[int(site["layer"])] = max(scores.get(int(site["layer"]), 0.0), float(site["recovery"]))
    direct = progress.numbers("attribution")
    for name, written in direct.get("heads", {}).items():
        share = abs(written / direct["total"]) if direct["total"] else 0.0
        if share >= DIRECT:
            layer = heads_of([name])[0][0]
            scores[layer] = max(scores.get(layer, 0.0), share)
    moving = moving_layer(progress)
    if moving is not None:
        scores[moving] = 1.0
        if "attention" not in progress.measured:  # then its neighbours are the next best guess
            scores |= {near: 0.5 for near in (moving - 1, moving + 1) if 0 <= near < facts.n_layers}
    return sorted(scores, key=lambda layer: (-scores[layer], layer))[:MOST_LAYERS]


# The template values of each step.


def _baseline(_: Progress, attempt: int) -> Values:
    return {"accuracy": ACCURACY, "pairs": "" if attempt == 1 else "[:4]"}


def _attribution(progress: Progress, attempt: int) -> Values:
    facts = facts_of(progress)
    return {
        "pairs": _first_pairs(facts, facts.explore // attempt),
        "clean": facts.clean,
        "share": DIRECT,
        "mlp": facts.has("mlp_out"),
    }


def _residual(progress: Progress, attempt: int) -> Values | Skip:
    facts = facts_of(progress)
    if not facts.varied:
        return Skip("clean and corrupted prompts are the same", lasting=True)
    per_layer = facts.n_tokens - facts.varied[0]
    return {
        "pairs": _swept_pairs(facts, facts.n_layers * per_layer, attempt),
        "layers": _swept_layers(facts, per_layer, attempt),
        "varied": facts.varied,
        "last": facts.last,
        "carried": CARRIED,
    }


def _component(progress: Progress, attempt: int) -> Values | Skip:
    """Attention or MLP outputs, at the positions that carry the answer and at the last."""
    facts, strongest = facts_of(progress), log.carriers(progress)[:MOST_POSITIONS]
    if not strongest:
        return Skip("no position carries the answer by itself")
    positions = sorted({*strongest, facts.last})
    return {
        "pairs": _swept_pairs(facts, facts.n_layers * len(positions), attempt),
        "positions": positions,
        "layers": _swept_layers(facts, len(positions), attempt),
        "varied": facts.varied,
        "last": facts.last,
        "moving": moving_layer(progress),
        "carried": CARRIED,
    }


def _heads(progress: Progress, attempt: int) -> Values | Skip:
    layers = _layers_to_search(progress)
    if not layers:
        return Skip("no layer is known to matter")
    return _head_sweep(progress, attempt, layers, next(iter(sites(progress, "attention")), None))


def _more_heads(progress: Progress, attempt: int) -> Values | Skip:
    searched = _layers_to_search(progress)
    rest = [layer for layer in range(facts_of(progress).n_layers) if layer not in searched]
    if found_heads(progress) or not rest:
        return Skip("there is no need to look at more heads", lasting=True)
    return _head_sweep(progress, attempt, rest, None)


def _head_sweep(
    progress: Progress, attempt: int, layers: list[int], strongest: Mapping[str, Any] | None
) -> Values:
    """Every head of these layers, or of the more promising half of them after a failure."""
    facts = facts_of(progress)
    layers = sorted(layers if attempt == 1 else layers[: max(1, len(layers) // 2)])
    pairs = _swept_pairs(facts, len(layers) * facts.n_heads, attempt)
    return {"pairs": pairs, "layers": layers, "strongest": strongest}


def _roles(progress: Progress, attempt: int) -> Values:
    return {"found": found_heads(progress), "sequences": 4 if attempt == 1 else 2}


def _composition(progress: Progress, attempt: int) -> Values | Skip:
    facts, found, moving = facts_of(progress), found_heads(progress), moving_layer(progress)
    later = [head for head in found if any(other[0] < head[0] for other in found)]
    later = [head for head in later if moving is None or head[0] >= moving][:3] or later[:3]
    if not later:
        return Skip("the found heads are all in one layer, so none can steer another", lasting=True)
    return {
        "earlier": [head for head in found if any(head[0] < other[0] for other in later)][:4],
        "later": later,
        "pairs": _first_pairs(facts, facts.explore // attempt),
        "first_varied": facts.varied[0],
    }


def _necessity(progress: Progress, attempt: int) -> Values:
    facts, found = facts_of(progress), found_heads(progress)
    return {
        "found": found,
        "pairs": _held_out_pairs(facts, attempt),
        "held_out": facts.held_out,
        "random_sets": _random_sets(facts, found, 10 if attempt == 1 else 4),
    }


def _sufficiency(progress: Progress, attempt: int) -> Values | Skip:
    facts, found = facts_of(progress), found_heads(progress)
    if len(found) == facts.n_layers * facts.n_heads:
        return Skip("every head of the model was found, so there are no others to ablate")
    # Of interest if there are unablated earlier layers, and heads left to ablate after them.
    late = moving_layer(progress) or None
    if late is not None:
        in_late = [head for head in found if head[0] >= late]
        if not in_late or len(in_late) == (facts.n_layers - late) * facts.n_heads:
            late = None
    return {
        "found": found,
        "pairs": _held_out_pairs(facts, attempt),
        "random_sets": _random_sets(facts, found, 5 if attempt == 1 else 2),
        "late": late,
        "kept": KEPT,
        "mlp": facts.has("mlp_out"),
    }


def _null(progress: Progress, attempt: int) -> Values | Skip:
    facts = facts_of(progress)
    silent = heads_of(progress.numbers("heads").get("silent", []))[: max(1, len(found_heads(progress)))]
    positions = [int(pos) for pos in progress.numbers("residual").get("silent", [])][:3]
    if not silent and not positions:
        return Skip("nothing was measured that is predicted not to matter")
    middle = facts.n_layers // 2
    layers = sorted({middle // 2, middle, middle + (facts.n_layers - 1 - middle) // 2})
    return {
        "silent": silent,
        "positions": positions,
        "layers": layers if attempt == 1 else layers[:1],
        "pairs": _held_out_pairs(facts, attempt),
        "held_out": facts.held_out,
    }


_DIRECT = _model_has("unembedding", "final_norm_formula", "head_outputs")
_MLPS, _HEADS, _PATTERNS = _model_has("mlp_out"), _model_has("z"), _model_has("pattern")
_ATTENTION_SENTENCE, _MLP_SENTENCE = (partial(log.sites_sentence, step) for step in ("attention", "mlp"))

HEADS = Study(
    name="heads",
    applies=(_measurable,),
    steps=(  # name, values of its template, sentence, steps it needs besides the baseline, when it applies
        Step("baseline", _baseline, log.behaviour_sentence),
        Step("attribution", _attribution, log.direct_sentence, (), (_DIRECT,)),
        Step("residual", _residual, log.residual_sentence),
        Step("attention", _component, _ATTENTION_SENTENCE, ("residual",), template="component"),
        Step("mlp", _component, _MLP_SENTENCE, ("residual",), (_MLPS,), template="component"),
        Step("heads", _heads, log.heads_sentence, (), (_HEADS,)),
        Step("more_heads", _more_heads, None, ("heads",), (_HEADS,), template="heads"),
        Step("roles", _roles, log.roles_sentence, ("heads",), (_PATTERNS, _found)),
        Step("composition", _composition, log.composition_sentence, ("heads",), (_PATTERNS, _found)),
        Step("necessity", _necessity, log.necessity_sentence, ("heads",), (_found,)),
        Step("sufficiency", _sufficiency, log.sufficiency_sentence, ("heads",), (_found,)),
        Step("null", _null, log.null_sentence),
    ),
    priority=(
        *("baseline", "residual", "heads", "necessity"),
        *("attention", "more_heads", "sufficiency", "attribution", "mlp", "null", "composition", "roles"),
    ),
    criterion="heads were found and the behaviour needs them more than any random set of as many",
    answer=log.answer,
    cited=(
        ("accuracy", "baseline", "accuracy"),
        ("clean_logit_diff", "baseline", "clean"),
        ("carried", "residual", "carried"),
        ("arrives", "residual", "arrives"),
        ("heads", "heads", "found"),
        ("left_without_them", "necessity", "left"),
        ("left_without_random_heads", "necessity", "random"),
        ("left_with_only_them", "sufficiency", "kept"),
    ),
    no_start="the behaviour could not be measured",
)

"""The study of a behaviour that prompt pairs show: where it is carried, by which heads, claims about that.

It explores on all of `setup.dataset`, then declares. Contains: the steps, when each applies and how large its
experiment may be. See `heads_claims.py` for what is declared, `heads_log.py` for readings of the log and the
sentences of the conclusion, `templates/experiments/heads/` for hypotheses, thresholds and
code of the experiments; a threshold that also decides the next step is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mlxterp_agent.researchers.scripted import heads_log as log
from mlxterp_agent.researchers.scripted.claims import Claim, claim_sentence
from mlxterp_agent.researchers.scripted.heads_claims import (
    MOST_NULLS,
    MOST_SITES,
    null_claims,
    set_claims,
    set_heads,
    site_claims,
)
from mlxterp_agent.researchers.scripted.heads_log import (
    ACCURACY,
    FEWEST_PAIRS,
    Facts,
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
    few = facts.n_pairs < FEWEST_PAIRS
    return Skip(f"fewer than {FEWEST_PAIRS} pairs give no interval", lasting=True) if few else None


def _found(progress: Progress) -> Skip | None:
    return None if found_heads(progress) else Skip("no heads were found")


def _model_has(*names: str) -> Condition:
    """The condition that the model has these hook points or parts."""

    def condition(progress: Progress) -> Skip | None:
        lacking = [name for name in names if not facts_of(progress).has(name)]
        return Skip(f"the model has no {listed(lacking)}", lasting=True) if lacking else None

    return condition


# How large an experiment may be.


def _most_rows(facts: Facts, attempt: int) -> int:
    """How many patched rows a sweep may have: WORK, and a quarter of it after a failure."""
    of_one = facts.n_layers * facts.d_model**2 * facts.n_tokens
    return max(1, int(WORK / of_one / 4 ** (attempt - 1)))


def _first_pairs(facts: Facts, count: int) -> str:
    """The slice of the first `count` pairs, at least as many as have intervals where each is half of a couple
    in both directions; none where that is all of them."""
    count = max(2 * FEWEST_PAIRS, count)
    return "" if count >= facts.n_pairs else f"[:{count}]"


def _swept_pairs(facts: Facts, rows_per_pair: int, attempt: int) -> str:
    """The slice of pairs to search on, as many as the row limit allows."""
    return _first_pairs(facts, _most_rows(facts, attempt) // rows_per_pair)


def _swept_layers(facts: Facts, rows_per_layer: int, attempt: int) -> str:
    """The `layers=` argument: none for all layers, every second or third if two pairs of all are too many."""
    stride = -(-2 * facts.n_layers * rows_per_layer // _most_rows(facts, attempt))
    return "" if stride <= 1 else f", layers=range(0, {facts.n_layers}, {min(stride, facts.n_layers)})"


def _layers_to_search(progress: Progress) -> list[int]:
    """The layers whose heads are patched one by one, most promising first.

    Those whose attention recovers something, those whose heads write the answer directly, and the one that
    moves it; then those nearest to it.
    """
    facts = facts_of(progress)
    scores: dict[int, float] = {}
    for site in sites(progress, "attention"):
        scores[int(site["layer"])] = max(scores.get(int(site["layer"]), 0.0), float(site["recovery"]))
    direct = progress.numbers("attribution")
    for name, written in direct.get("heads", {}).items():
        share = written / direct["total"] if direct["total"] else 0.0  # negative: against the answer
        if share >= DIRECT:
            layer = heads_of([name])[0][0]
            scores[layer] = max(scores.get(layer, 0.0), share)
    moving = moving_layer(progress)
    if moving is not None:
        scores[moving] = 1.0
    near = facts.n_layers // 2 if moving is None else moving
    order = sorted(
        range(facts.n_layers), key=lambda layer: (-scores.get(layer, 0.0), abs(layer - near), layer)
    )
    return order[:MOST_LAYERS]


# The template values of each step.


def _baseline(_: Progress, attempt: int) -> Values:
    return {"accuracy": ACCURACY, "pairs": "" if attempt == 1 else "[:4]"}


def _attribution(progress: Progress, attempt: int) -> Values:
    facts = facts_of(progress)
    return {
        "pairs": _first_pairs(facts, facts.n_pairs // attempt),
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


def _heads(progress: Progress, attempt: int) -> Values:
    """All heads at the last position, which costs a token a row; in a small model at all positions."""
    facts, strongest = facts_of(progress), next(iter(sites(progress, "attention")), None)
    every = list(range(facts.n_layers))
    if facts.n_layers <= MOST_LAYERS:
        return _head_sweep(progress, attempt, every, strongest)
    rows = _most_rows(facts, attempt) * facts.n_tokens
    pairs = _first_pairs(facts, rows // (facts.n_layers * facts.n_heads))
    return {"pairs": pairs, "layers": every, "strongest": strongest, "last_only": True}


def _more_heads(progress: Progress, attempt: int) -> Values | Skip:
    """Heads at all positions, where none was found at the last one."""
    if found_heads(progress) or not progress.numbers("heads").get("last_only"):
        return Skip("there is no need to look at more heads", lasting=True)
    return _head_sweep(progress, attempt, _layers_to_search(progress), None)


def _head_sweep(
    progress: Progress, attempt: int, layers: list[int], strongest: Mapping[str, Any] | None
) -> Values:
    """Every head of these layers, or of the more promising half of them after a failure."""
    facts = facts_of(progress)
    layers = sorted(layers if attempt == 1 else layers[: max(1, len(layers) // 2)])
    pairs = _swept_pairs(facts, len(layers) * facts.n_heads, attempt)
    return {"pairs": pairs, "layers": layers, "strongest": strongest, "last_only": False}


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
        "pairs": _first_pairs(facts, facts.n_pairs // attempt),
        "first_varied": facts.varied[0],
    }


def _together(progress: Progress, attempt: int) -> Values | Skip:
    claims = set_claims(progress)
    if not claims:
        return Skip("no head works for the answer", lasting=True)
    pairs = _first_pairs(facts_of(progress), facts_of(progress).n_pairs // attempt)
    return {"sites": list(claims[0].sites), "heads": set_heads(progress), "pairs": pairs}


Choice = Callable[[Progress], Sequence[Claim]]


def _claim(choice: Choice, index: int, progress: Progress, _: int) -> Values | Skip:
    """One of the claims that the log gives rise to."""
    claims = choice(progress)
    if index >= len(claims):
        return Skip("there is no such claim to make", lasting=True)
    return {"claim": claims[index]}


def _declares(name: str, choice: Choice, index: int) -> Step:
    """The step that declares one claim, once exploring has found what to claim."""
    return Step(
        name,
        partial(_claim, choice, index),
        partial(claim_sentence, name),
        needs=("heads",),
        applies=(_HEADS, _found),
        template="claim",
        attempts=1,
    )


_DIRECT = _model_has("unembedding", "final_norm_formula", "head_outputs")
_MLPS, _HEADS, _PATTERNS = _model_has("mlp_out"), _model_has("z"), _model_has("pattern")
_ATTENTION_SENTENCE, _MLP_SENTENCE = (partial(log.sites_sentence, step) for step in ("attention", "mlp"))

SITES = tuple(f"site_{i + 1}" for i in range(MOST_SITES))
SETS = ("sufficient", "necessary")
NULLS = tuple(f"null_{i + 1}" for i in range(MOST_NULLS))

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
        Step("together", _together, log.together_sentence, ("heads",), (_found,)),
        *(_declares(name, site_claims, i) for i, name in enumerate(SITES)),
        *(_declares(name, set_claims, i) for i, name in enumerate(SETS)),
        *(_declares(name, null_claims, i) for i, name in enumerate(NULLS)),
    ),
    priority=(
        *("baseline", "residual", "heads", "more_heads", SITES[0], *SETS, NULLS[0]),
        *("attention", "together", *NULLS[1:], *SITES[1:], "attribution", "mlp", "composition", "roles"),
    ),
    criterion="necessity and sufficiency are supported on held-out pairs, and the nulls are ruled out",
    answer=log.answer,
    cited=(
        ("accuracy", "baseline", "accuracy"),
        ("clean_logit_diff", "baseline", "clean"),
        ("carried", "residual", "carried"),
        ("arrives", "residual", "arrives"),
        ("heads", "heads", "found"),
        ("explored_sufficient", "together", "sufficient"),
        ("explored_necessary", "together", "necessary"),
    ),
    no_start="the behaviour could not be measured",
)

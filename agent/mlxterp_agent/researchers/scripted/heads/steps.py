"""What each step of the scripted investigation asks, given what is known: the values of its experiment.py.

Predictions are stated here, before a run, from what earlier steps found; thresholds too, once. What does not
live here: the order of the steps (`plan.py`), the wording of the conclusion (`conclude.py`), the code of the
experiments (`templates/experiments/heads/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxterp_agent.researchers.scripted.concluding import listed
from mlxterp_agent.researchers.scripted.heads import trials
from mlxterp_agent.researchers.scripted.heads.conclude import conclusion
from mlxterp_agent.researchers.scripted.heads.criteria import (
    ACCURACY,
    CARRIED,
    DIRECT,
    HEAD,
    KEPT,
    MOST_HEADS,
    ORDER,
    SITE,
    STRONG_SITE,
)
from mlxterp_agent.researchers.scripted.heads.facts import (
    Facts,
    critical_positions,
    facts_of,
    found_heads,
    moving_layer,
    sites,
)
from mlxterp_agent.researchers.scripted.heads.sizing import (
    critical_layers,
    first_pairs,
    swept_layers,
    swept_pairs,
)
from mlxterp_agent.researchers.scripted.plan import (
    Known,
    Question,
    Skip,
    Step,
    step_of,
)


def build(name: str, known: Known, attempt: int) -> Step | Skip:
    """The step of this name as it would be run now, or why it has nothing to ask."""
    facts = facts_of(known)
    asked: Question | Skip
    if name == "baseline":
        asked = _baseline(attempt)
    elif name == "conclusion":
        asked = _conclusion(known)
    elif facts is None:
        return Skip("the baseline was not measured")
    elif not facts.shows_behaviour(ACCURACY):
        return Skip("the model does not show the behaviour", lasting=True)
    elif facts.n_pairs < 2:
        return Skip("one pair gives no interval", lasting=True)
    else:
        asked = _BUILDERS[name](known, facts, attempt)
    return step_of(name, asked, attempt)


def _baseline(attempt: int) -> Question:
    return Question(
        "heads/baseline",
        "The model prefers the answer to the foil after the clean prompt, and the foil to the answer after "
        f"the corrupted one, on at least {ACCURACY:.0%} of the pairs. Rival: it does not know, and there is "
        "nothing to investigate.",
        {"accuracy": ACCURACY, "chosen": "" if attempt == 1 else "[:4]"},
    )


def _attribution(_: Known, facts: Facts, attempt: int) -> Question | Skip:
    lacking = [name for name in ("unembedding", "final_norm_formula", "head_outputs") if not facts.has(name)]
    if lacking:
        return Skip(f"this model cannot be attributed directly (no {listed(lacking)})", lasting=True)
    return Question(
        "heads/attribution",
        f"The logit difference of {facts.clean:.1f} is written by few components: one head writes at least "
        f"{DIRECT:.0%} of it, with the same sign on most pairs. Rival: many components write a little each.",
        {"pairs": first_pairs(facts, facts.explore // attempt), "share": DIRECT, "mlp": facts.has("mlp_out")},
    )


def _residual(_: Known, facts: Facts, attempt: int) -> Question | Skip:
    if not facts.varied:
        return Skip("clean and corrupted prompts are the same", lasting=True)
    per_layer = facts.n_tokens - facts.varied[0]
    return Question(
        "heads/residual",
        f"The answer is carried where the prompts differ (positions {listed(facts.varied)}), and later at "
        f"the last position, {facts.last}; no other position recovers {CARRIED} in any layer. Rival: it "
        "goes through other positions on its way.",
        {
            "pairs": swept_pairs(facts, facts.n_layers * per_layer, attempt),
            "layers": swept_layers(facts, per_layer, attempt),
            "recovery": CARRIED,
            "varied": list(facts.varied),
        },
    )


def _attention(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    moving = moving_layer(known, facts)
    if moving is None:
        prediction = f"best.effect >= {CARRIED}"
        guess = f"The attention of one layer recovers at least {CARRIED} at one of these positions."
    else:
        prediction = f"best.layer == {moving} and best.pos == {facts.last} and best.effect >= {CARRIED}"
        guess = (
            f"The attention of layer {moving} moves the answer to the last position: its output there "
            f"recovers most of all sites, and at least {CARRIED}."
        )
    return _component(
        known,
        facts,
        attempt,
        question="which layers' attention moves the answer, and where to?",
        hypothesis=f"{guess} Rival: no single layer does; it is moved a little by many.",
        values={"component": "attn_out", "what": "attention adds", "prediction": prediction},
    )


def _mlp(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    if not facts.has("mlp_out"):
        return Skip("the model has no MLPs", lasting=True)
    return _component(
        known,
        facts,
        attempt,
        question="which layers' MLPs bring the answer out, and where?",
        hypothesis="MLPs work on the tokens that differ, before the answer is moved: the strongest is at "
        f"position {' or '.join(map(str, facts.varied))} and recovers at least {STRONG_SITE}. Rival: MLPs at "
        "the last position do.",
        values={
            "component": "mlp_out",
            "what": "MLPs add",
            "prediction": f"best.pos in {list(facts.varied)} and best.effect >= {STRONG_SITE}",
        },
    )


def _component(
    known: Known, facts: Facts, attempt: int, *, question: str, hypothesis: str, values: Mapping[str, Any]
) -> Question | Skip:
    positions = critical_positions(known, facts)
    if positions is None:
        return Skip("the residual sweep was not measured")
    if not positions:
        return Skip("no position carries the answer by itself")
    shared = {
        "question": question,
        "pairs": swept_pairs(facts, facts.n_layers * len(positions), attempt),
        "positions": positions,
        "layers": swept_layers(facts, len(positions), attempt),
        "site": SITE,
        "strong": STRONG_SITE,
    }
    return Question("heads/component", hypothesis, {**shared, **values})


def _heads(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    if not facts.has("z"):
        return Skip("the model's heads cannot be told apart", lasting=True)
    layers = critical_layers(known, facts)
    if not layers:
        return Skip("no layer is known to matter")
    strongest = next(iter(sites(known, "attention")), None)
    if strongest is None:
        prediction = "bool(strong)"
        guess = f"At least one head recovers {HEAD} by itself."
    else:
        prediction = f"1 <= sum(head.layer == {strongest['layer']} for head in strong) <= 2"
        guess = (
            f"One or two heads of layer {strongest['layer']} do what its attention does (recovery "
            f"{strongest['recovery']:.2f}): each recovers at least {HEAD} by itself."
        )
    return _some_heads(
        facts,
        attempt,
        layers,
        prediction,
        f"{guess} Rival: the work is spread over many heads, none of which reaches {HEAD}.",
    )


def _more_heads(known: Known, facts: Facts, attempt: int) -> Question | Skip:
    if known.numbers("heads") is None:
        return Skip("no heads were patched before")
    if found_heads(known):
        return Skip(_ENOUGH_HEADS, lasting=True)
    seen = critical_layers(known, facts)
    rest = [layer for layer in range(facts.n_layers) if layer not in seen]
    if not rest:
        return Skip(_ENOUGH_HEADS, lasting=True)
    return _some_heads(
        facts,
        attempt,
        rest,
        "bool(strong)",
        f"The heads are in layers that were not looked at: one of them recovers at least {HEAD} by itself. "
        f"Rival: the work is spread over many heads, none of which reaches {HEAD}.",
    )


def _some_heads(facts: Facts, attempt: int, layers: list[int], prediction: str, hypothesis: str) -> Question:
    layers = sorted(layers if attempt == 1 else layers[: max(1, len(layers) // 2)])
    return Question(
        "heads/heads",
        hypothesis,
        {
            "pairs": swept_pairs(facts, len(layers) * facts.n_heads, attempt),
            "layers": layers,
            "prediction": prediction,
            "head": HEAD,
            "most": MOST_HEADS,
        },
    )


def _conclusion(known: Known) -> Question:
    written = conclusion(known, accuracy=ACCURACY, kept=KEPT)
    return Question(
        "conclusion",
        "The steps so far, taken together, answer the question. Rival: they do not, and what is missing is "
        "named.",
        {
            "evidence": {step: known.measured[step].entry_id for step in ORDER if step in known.measured},
            "cited": written.cited,
            "shown": written.shown,
            "not_shown": written.not_shown,
            "answered": written.answered,
            "criterion": written.criterion,
            "conclusion": written.text,
        },
    )


_ENOUGH_HEADS = "there is no need to look at more heads"

_BUILDERS: Mapping[str, Callable[[Known, Facts, int], Question | Skip]] = {
    "attribution": _attribution,
    "residual": _residual,
    "attention": _attention,
    "mlp": _mlp,
    "heads": _heads,
    "more_heads": _more_heads,
    "roles": trials.roles,
    "composition": trials.composition,
    "necessity": trials.necessity,
    "sufficiency": trials.sufficiency,
    "null": trials.null,
}

"""The conclusion of a scripted investigation: sentences made of the numbers in the log, and of nothing else.

Each sentence says what a step measured. What was not measured, failed, or did not reach its criterion is said
as
well: a model in which nothing was found gets a conclusion that says so. Thresholds live elsewhere
    (`steps.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxterp_agent.researchers.scripted.concluding import (
    Cited,
    Conclusion,
    left_out,
    listed,
    predictions,
    some,
)
from mlxterp_agent.researchers.scripted.heads.criteria import ORDER
from mlxterp_agent.researchers.scripted.heads.facts import (
    Facts,
    carriers,
    facts_of,
    found_heads,
    head_effects,
    label,
    moving_layer,
    sites,
)
from mlxterp_agent.researchers.scripted.plan import Known

CRITERION = "heads were found and the behaviour needs them more than any random set of as many"

FEW_PAIRS = 4
"""With fewer pairs than this a bootstrap interval is too narrow."""


def conclusion(known: Known, *, accuracy: float, kept: float) -> Conclusion:
    """The conclusion that this log supports.

    Args:
        accuracy: share of pairs on which the model must show the behaviour.
        kept: share of the logit difference at which heads are enough.
    """
    facts = facts_of(known)
    if facts is None or not facts.shows_behaviour(accuracy):
        text = "Nothing was measured."
        if facts is not None:
            text = f"There is no mechanism to look for. {_behaviour(facts)}"
        return Conclusion(
            text, [text], left_out(known, ORDER), _cited(known), answered=False, criterion=CRITERION
        )
    if facts.n_pairs < 2:
        text = f"{_behaviour(facts)} One pair gives no interval: setup.py needs more."
        return Conclusion(
            text, [text], left_out(known, ORDER), _cited(known), answered=False, criterion=CRITERION
        )
    tests = some(_necessity(known), _sufficiency(known, kept))
    limits = _limits(known, facts, kept)
    shown = some(
        _behaviour(facts),
        _where(known, facts),
        _direct(known),
        _moved(known, facts, "attention"),
        _moved(known, facts, "mlp"),
        _heads(known),
        _roles(known),
        _composition(known),
        *tests,
        _null(known),
        predictions(known),
    )
    text = " ".join(some(_answer(known, facts), *tests, f"Not shown: {limits[0]}" if limits else ""))
    needed = bool((known.numbers("necessity") or {}).get("needed"))
    return Conclusion(text, shown, limits, _cited(known), answered=needed, criterion=CRITERION)


def _nothing(known: Known, text: str) -> Conclusion:
    return Conclusion(
        text, [text], left_out(known, ORDER), _cited(known), answered=False, criterion=CRITERION
    )


def _answer(known: Known, facts: Facts) -> str:
    """The short answer, from the residual stream and the heads."""
    measured = [step for step in ("residual", "heads") if known.numbers(step) is not None]
    if not measured:
        return "Where the answer is computed was not measured."
    found = found_heads(known)
    if not found and not carriers(known):
        return "Nothing was found: no single layer and position, and no single head, carries the answer."
    nothing = "" if known.numbers("heads") is None else "No single head recovers enough of it to be named."
    reading = (
        "(Tokens are the first pair's; numbers are the share of the logit difference one site recovers.)"
    )
    story = _story(known, facts) if found else nothing
    return " ".join(some(story, _where(known, facts), _strongest_mlp(known, facts), reading))


def _story(known: Known, facts: Facts) -> str:
    """What the found heads do, as far as it was measured."""
    moving = moving_layer(known, facts)
    effects, roles = head_effects(known, "found"), (known.numbers("roles") or {}).get("roles", {})
    named: dict[str, list[str]] = {"before": [], "moving": [], "after": []}
    for layer, head in found_heads(known):
        name = label((layer, head))
        when = "after" if moving is None or layer > moving else "moving" if layer == moving else "before"
        role = f"{roles[name]} head, " if name in roles else ""
        named[when].append(f"{name} ({role}{effects[name]:.2f})")
    if moving is None:
        return f"Heads that carry the answer: {listed(named['after'])}."
    opposing = head_effects(known, "opposing")
    edges = [edge.partition(" -> ") for edge in (known.numbers("composition") or {}).get("steered", {})]
    parts = some(
        _does(named["moving"], "move", f"the answer to the last position, in layer {moving}"),
        _does(named["before"], "matter", "before that"),
        _does(named["after"], "act", "on it later"),
        listed(f"{earlier} tells {later} where to look" for earlier, _, later in edges),
        _does([f"{name} ({effect:.2f})" for name, effect in opposing.items()], "work", "against it"),
    )
    return f"{'; '.join(parts)}."


def _does(names: list[str], verb: str, what: str) -> str:
    """`L9.H6 moves it`, `L9.H6 and L10.H0 move it`; nothing without names."""
    return f"{listed(names)} {verb}{'s' if len(names) == 1 else ''} {what}" if names else ""


def _behaviour(facts: Facts) -> str:
    return (
        f"the model prefers answer and foil as it should on {facts.accuracy:.0%} of {facts.n_pairs} pairs; "
        f"mean logit difference {facts.clean:.2f} clean, {facts.corrupted:.2f} corrupted."
    ).capitalize()


def _where(known: Known, facts: Facts) -> str:
    """Which positions of the residual stream carry the answer, and from where on the last one does."""
    numbers = known.numbers("residual")
    if numbers is None:
        return ""
    carried = {int(pos): each for pos, each in numbers["carried"].items()}
    if not carried:
        return "No single layer and position of the residual stream carries the answer."
    places = {
        pos: f"{pos} ({facts.token(pos)}, {carried[pos]['recovery']:.2f})"
        for pos in carriers(known)
        if pos != facts.last
    }
    changed = [place for pos, place in places.items() if pos in facts.varied]
    others = [place for pos, place in places.items() if pos not in facts.varied]
    here = f" ({carried[facts.last]['recovery']:.2f})" if facts.last in carried else ""
    parts = some(
        f"where the prompts differ, at position {listed(changed)}" if changed else "",
        f"{'then ' if changed else ''}at position {listed(others)}" if others else "",
        f"from layer {numbers['arrives']} on at the last position{here}"
        if numbers["arrives"] is not None
        else f"and behind the last layer, {facts.n_layers - 1}, at the last position",
    )
    return f"The answer is carried {'; '.join(parts)}."


def _direct(known: Known) -> str:
    numbers = known.numbers("attribution")
    if numbers is None:
        return ""
    every = [*list(numbers["heads"].items())[:3], *list(numbers["mlps"].items())[:2]]
    top = [f"{name} {value:+.2f}" for name, value in every if abs(value) >= 0.01]
    return f"Written directly into the logit difference of {numbers['total']:.2f}, in logits: {listed(top)}."


def _moved(known: Known, facts: Facts, step: str) -> str:
    numbers = known.numbers(step)
    if numbers is None:
        return ""
    name = "MLP" if step == "mlp" else "attention"
    top = [
        f"layer {site['layer']} at position {facts.place(int(site['pos']))} {site['recovery']:.2f}"
        for site in sites(known, step)[:4]
    ]
    if not top:
        return f"No {name} output of one layer at one position recovers enough to be named."
    tie = f" ({_TIE})" if numbers["tie"] and len(top) > 1 else ""
    return f"Recovered by the {name} output of one layer at one position: {'; '.join(top)}{tie}."


def _strongest_mlp(known: Known, facts: Facts) -> str:
    top = sites(known, "mlp")[:1]
    if not top:
        return ""
    at = facts.place(int(top[0]["pos"]))
    return f"Of the MLPs, layer {top[0]['layer']} at position {at} recovers most ({top[0]['recovery']:.2f})."


def _heads(known: Known) -> str:
    if known.numbers("heads") is None:
        return ""
    found, opposing = (
        [f"{name} {effect:.2f}" for name, effect in head_effects(known, which).items()]
        for which in ("found", "opposing")
    )
    text = "No single head recovers enough to be named"
    if found:
        text = f"Recovered by one head: {listed(found)}"
    tied = len(found) > 1 and any((known.numbers(step) or {}).get("tie") for step in ("heads", "more_heads"))
    against = f"; against the answer work {listed(opposing)}" if opposing else ""
    return f"{text}{f' ({_TIE})' if tied else ''}{against}."


def _roles(known: Known) -> str:
    numbers = known.numbers("roles")
    if numbers is None:
        return ""
    scores, roles = numbers["scores"], numbers["roles"]
    told = [f"{name} {role} head ({max(scores[name].values()):.2f})" for name, role in roles.items()]
    nothing = "none of them is a previous-token, duplicate-token or induction head"
    return f"What the found heads attend to on repeated random tokens: {listed(told) or nothing}."


def _composition(known: Known) -> str:
    numbers = known.numbers("composition")
    if numbers is None:
        return ""
    if not numbers["steered"]:
        fall = f"{numbers['largest']:.2f}"
        return f"No earlier found head steers where a later one looks: its attention falls by {fall} at most."
    falls = [f"{edge} (attention falls by {fall:.2f})" for edge, fall in numbers["steered"].items()]
    return f"An earlier head steers where a later one looks: {listed(falls)}."


def _necessity(known: Known) -> str:
    numbers = known.numbers("necessity")
    if numbers is None:
        return ""
    low, high = numbers["left_ci"]
    random = numbers["random"]
    against = ""
    if random:
        against = f", where {len(random)} random sets of as many leave {min(random):.0%} to {max(random):.0%}"
    verdict = "the behaviour needs them" if numbers["needed"] else "that it needs them is not shown"
    return (
        f"Ablating {_all(known)} leaves {numbers['left']:.0%} [{low:.0%}, {high:.0%}] of the logit "
        f"difference on {numbers['n_pairs']} pairs{against}: {verdict}."
    )


def _sufficiency(known: Known, enough: float) -> str:
    numbers = known.numbers("sufficiency")
    if numbers is None:
        return ""
    verdict = "they are enough" if numbers["as_predicted"] else "they are not enough by themselves"
    if numbers["as_predicted"] and numbers["kept"] < 0.9:
        verdict = "they are enough for most of it"
    text = f"With all other heads ablated {numbers['kept']:.0%} is left: {verdict}"
    if "kept_late" in numbers and numbers["kept_late"] >= max(enough, numbers["kept"] + 0.05):
        text += f"; with only the others from layer {numbers['late']} on ablated, {numbers['kept_late']:.0%}"
    return f"{text}."


def _null(known: Known) -> str:
    numbers = known.numbers("null")
    if numbers is None:
        return ""
    names = {"heads": "of silent heads", "positions": "at silent positions"}
    bounds = [f"above {numbers[key]['ruled_out']:.3f} {names[key]}" for key in names if key in numbers]
    if numbers["null"]:
        return f"What was predicted not to matter does not: effects {listed(bounds)} are ruled out."
    return f"The null check failed: only effects {listed(bounds)} are ruled out; something may be missing."


def _all(known: Known) -> str:
    count = len(found_heads(known))
    return "this head" if count == 1 else "both heads" if count == 2 else f"these {count} heads"


def _limits(known: Known, facts: Facts, kept: float) -> list[str]:
    """What was not shown, the most serious first."""
    limits = []
    necessity, sufficiency = known.numbers("necessity"), known.numbers("sufficiency")
    if necessity is not None and not necessity["needed"]:
        limits.append("that the behaviour needs the found heads more than random ones.")
    if sufficiency is not None and max(sufficiency["kept"], sufficiency.get("kept_late", 0.0)) < kept:
        limits.append("that the found heads are enough: with only them the behaviour is mostly gone.")
    if necessity is not None and necessity["n_pairs"] < FEW_PAIRS:
        limits.append(
            f"how certain the tests are: an interval from {necessity['n_pairs']} pairs says little."
        )
    limits.append(f"that this holds beyond these {facts.n_pairs} prompts of one form.")
    if found_heads(known):
        limits.append("that the set of heads is minimal or complete: heads were patched one by one.")
    if necessity is not None and not facts.held_out:
        limits.append("that the tests hold on other pairs: there were too few to hold any out.")
    if known.numbers("mlp") is not None:
        limits.append("what the MLPs compute: they were patched as a whole.")
    return [*limits, *left_out(known, ORDER)]


def _cited(known: Known) -> list[Cited]:
    """The key numbers, by the step that measured them."""
    wanted: Iterable[Cited] = (
        ("accuracy", "baseline", "accuracy"),
        ("clean_logit_diff", "baseline", "clean"),
        ("carried", "residual", "carried"),
        ("arrives", "residual", "arrives"),
        ("heads", "heads", "found"),
        ("left_without_them", "necessity", "left"),
        ("left_without_random_heads", "necessity", "random"),
        ("left_with_only_them", "sufficiency", "kept"),
    )
    return [each for each in wanted if each[1] in known.measured]


_TIE = "too close to say which of the first two is stronger"

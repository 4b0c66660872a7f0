"""Readings of the log of a study of heads: the facts that decisions share, and the sentences of its
conclusion.

Each sentence states what a step measured, from its numbers and from nothing else. What was not measured,
failed or missed its criterion is stated too. See `heads.py` for the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mlxterp.component_names import parse_head
from mlxterp.text import percent
from mlxterp_agent.researchers.scripted.claims import claim_sentence, verdict_sentences, verdict_words
from mlxterp_agent.researchers.scripted.study import FAILED, Answer, Progress, listed, sentences

ACCURACY = 0.8
"""Share of pairs on which a model must show the behaviour, for it to be investigated."""
FEWEST_PAIRS = 4
"""Independent pairs below which there is no interval, so that nothing can be told from chance."""
OVERSHOOT = 1.25
"""Recovery beyond which a set does something else than restore the clean run: it is not sufficient."""

ESTABLISHED = (
    "A mechanism is established: as a set the found heads are sufficient and necessary, and what could have "
    "mattered beside them was ruled out."
)

Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class Facts:
    """Model and prompts, as the baseline measured them.

    Attributes:
        accuracy: share of pairs on which the model prefers answer and foil where it should.
        clean, corrupted: mean logit differences.
        varied: positions at which clean and corrupted prompts differ.
        tokens: those of the first clean prompt.
        capabilities: which hook points and parts the model has.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_tokens: int
    n_pairs: int
    accuracy: float
    clean: float
    corrupted: float
    varied: Sequence[int]
    tokens: Sequence[str]
    capabilities: Mapping[str, bool]

    @property
    def last(self) -> int:
        """The answer position."""
        return self.n_tokens - 1

    @property
    def shows_behaviour(self) -> bool:
        """Whether there is something to investigate: enough pairs work, both means have the right sign."""
        return self.accuracy >= ACCURACY and self.clean > 0 > self.corrupted

    def has(self, name: str) -> bool:
        """Whether the model has this hook point or part."""
        return self.capabilities.get(name, False)

    def token(self, pos: int) -> str:
        """The first clean prompt's token at a position, in quotes."""
        return repr(self.tokens[pos]) if pos < len(self.tokens) else "?"

    def place(self, pos: int) -> str:
        """A position for people: `4 (' is')`, `9 (' of', the last)`, `2 ('iffel', changed token 2 of 3)`."""
        note = ""
        if pos == self.last:
            note = ", the last"
        elif pos in self.varied:
            note = f", changed token {list(self.varied).index(pos) + 1} of {len(self.varied)}"
        return f"{pos} ({self.token(pos)}{note})"


# Facts that decisions share.


def facts_of(progress: Progress) -> Facts:
    """The numbers of the baseline, which must have been measured."""
    numbers = progress.numbers("baseline")
    return Facts(**{each.name: numbers[each.name] for each in fields(Facts)})


def label(head: Head) -> str:
    """`L9.H6`."""
    return f"L{head[0]}.H{head[1]}"


def heads_of(labels: Iterable[str]) -> list[Head]:
    """Heads from their labels, in the same order."""
    heads = (parse_head(each) for each in labels)
    return [head for head in heads if head is not None]


def head_effects(progress: Progress, which: str) -> dict[str, float]:
    """The recoveries of the heads that were "found", or are "opposing", strongest first."""
    effects: dict[str, float] = {}
    for step in ("heads", "more_heads"):
        effects |= progress.numbers(step).get(which, {})
    return dict(sorted(effects.items(), key=lambda each: -abs(each[1])))


def found_heads(progress: Progress) -> list[Head]:
    """The heads that recover enough by themselves, strongest first; empty if none, or not measured."""
    return heads_of(head_effects(progress, "found"))


def sites(progress: Progress, step: str) -> list[Mapping[str, Any]]:
    """The layers and positions whose attention or MLP output recovers enough, strongest first."""
    return sorted(progress.numbers(step).get("sites", []), key=lambda site: -float(site["recovery"]))


def carriers(progress: Progress) -> list[int]:
    """The positions that carry the answer somewhere, strongest first."""
    carried = progress.numbers("residual").get("carried", {})
    return sorted(map(int, carried), key=lambda pos: (-round(float(carried[str(pos)]["recovery"]), 3), pos))


def moving_layer(progress: Progress) -> int | None:
    """The layer in which the answer reaches the last position; None if it is not known.

    The sweep patches what enters a layer: where the last position leads from layer l on, layer l − 1 moved
    the answer there. Where it never leads, only the last layer is left to do so.
    """
    numbers = progress.numbers("residual")
    if not numbers.get("carried"):
        return None
    arrives = numbers["arrives"]
    return facts_of(progress).n_layers - 1 if arrives is None else max(0, int(arrives) - 1)


# One sentence for each step. `listed` and the numbers of the step are all they use.

_TIE = "too close to say which of the first two is stronger"


def behaviour_sentence(progress: Progress) -> str:
    facts = facts_of(progress)
    return (
        f"The model prefers answer and foil as it should on {percent(facts.accuracy)} of "
        f"{facts.n_pairs} pairs; mean logit difference {facts.clean:.2f} clean, "
        f"{facts.corrupted:.2f} corrupted."
    )


def direct_sentence(progress: Progress) -> str:
    numbers = progress.numbers("attribution")
    every = [*list(numbers["heads"].items())[:3], *list(numbers["mlps"].items())[:2]]
    top = [f"{name} {value:+.2f}" for name, value in every if abs(value) >= 0.01]
    return f"Written directly into the logit difference of {numbers['total']:.2f}, in logits: {listed(top)}."


def residual_sentence(progress: Progress) -> str:
    """Which positions of the residual stream carry the answer, and from where on the last one does."""
    facts, numbers = facts_of(progress), progress.numbers("residual")
    carried = {int(pos): each["recovery"] for pos, each in numbers["carried"].items()}
    if not carried:
        return "No single layer and position of the residual stream carries the answer."
    changed, others = (
        [
            f"{pos} ({facts.token(pos)}, {carried[pos]:.2f})"
            for pos in carriers(progress)
            if pos != facts.last and (pos in facts.varied) == in_varied
        ]
        for in_varied in (True, False)
    )
    parts = []
    if changed:
        parts.append(f"where the prompts differ, at position {listed(changed)}")
    if others:
        parts.append(f"{'then ' if changed else ''}at position {listed(others)}")
    if numbers["arrives"] is None:
        parts.append(f"and behind the last layer, {facts.n_layers - 1}, at the last position")
    else:
        recovery = f" ({carried[facts.last]:.2f})" if facts.last in carried else ""
        parts.append(f"from layer {numbers['arrives']} on at the last position{recovery}")
    return f"The answer is carried {'; '.join(parts)}."


def sites_sentence(step: str, progress: Progress) -> str:
    """The strongest sites that the step "attention" or "mlp" found, each with what it recovers."""
    facts, name = facts_of(progress), "MLP" if step == "mlp" else step
    top = [
        f"layer {site['layer']} at position {facts.place(int(site['pos']))} {site['recovery']:.2f}"
        for site in sites(progress, step)[:4]
    ]
    if not top:
        return f"No {name} output of one layer at one position recovers enough to be named."
    tie = f" ({_TIE})" if progress.numbers(step)["tie"] and len(top) > 1 else ""
    return f"Recovered by the {name} output of one layer at one position: {'; '.join(top)}{tie}."


def heads_sentence(progress: Progress) -> str:
    found, opposing = (
        [f"{name} {effect:.2f}" for name, effect in head_effects(progress, which).items()]
        for which in ("found", "opposing")
    )
    text = (
        f"Recovered by one head: {listed(found)}" if found else "No single head recovers enough to be named"
    )
    if len(found) > 1 and any(progress.numbers(step).get("tie") for step in ("heads", "more_heads")):
        text += f" ({_TIE})"
    return f"{text}; against the answer work {listed(opposing)}." if opposing else f"{text}."


def roles_sentence(progress: Progress) -> str:
    numbers = progress.numbers("roles")
    roles = [
        f"{name} {role} head ({max(numbers['scores'][name].values()):.2f})"
        for name, role in numbers["roles"].items()
    ]
    none = "none of them is a previous-token, duplicate-token or induction head"
    return f"What the found heads attend to on repeated random tokens: {listed(roles) or none}."


def composition_sentence(progress: Progress) -> str:
    numbers = progress.numbers("composition")
    if not numbers["steered"]:
        fall = f"{numbers['largest']:.2f}"
        return f"No earlier found head steers where a later one looks: its attention falls by {fall} at most."
    falls = [f"{edge} (attention falls by {fall:.2f})" for edge, fall in numbers["steered"].items()]
    return f"An earlier head steers where a later one looks: {listed(falls)}."


def together_sentence(progress: Progress) -> str:
    numbers = progress.numbers("together")
    text = (
        f"While exploring, the found heads together recovered {percent(numbers['sufficient'])} of the logit "
        f"difference in the corrupted run, and took {percent(numbers['necessary'])} of it out of the "
        "clean run"
    )
    return f"{text}; {_OVERSHOOTS}." if _overshoots(progress) else f"{text}."


_OVERSHOOTS = "more than all of it is an overshoot, and not a restored clean run"


def _overshoots(progress: Progress) -> bool:
    return float(progress.numbers("together").get("sufficient", 0.0)) > OVERSHOOT


# The answer, from all sentences.


def answer(progress: Progress) -> Answer:
    """The short answer: whether a mechanism is established, what was decided about each claim, and what
    exploring showed.

    A mechanism means that the set of found heads is sufficient and necessary on held-out pairs, and that what
    could have mattered beside it was ruled out there.
    """
    if "baseline" not in progress.measured:
        return Answer("Nothing was measured.")
    facts = facts_of(progress)
    if not facts.shows_behaviour:
        return Answer(f"There is no mechanism to look for. {behaviour_sentence(progress)}")
    if facts.n_pairs < FEWEST_PAIRS:
        few = f"Fewer than {FEWEST_PAIRS} pairs give no interval: setup.py needs more."
        return Answer(f"{behaviour_sentence(progress)} {few}")
    failed = _why_no_mechanism(progress)
    limits = _limits(progress)
    text = sentences(
        f"No mechanism is established. Missing: {'; '.join(failed)}." if failed else ESTABLISHED,
        *verdict_sentences(progress, filter(_is_claim, progress.measured)),
        f"What exploring showed, which is not confirmed: {_mechanism(progress, facts)}",
        f"Not shown: {limits[0]}",
    )
    return Answer(text, limits, criterion_met=not failed)


def _is_claim(step: str) -> bool:
    return step in ("sufficient", "necessary") or step.startswith(("site_", "null_"))


def _why_no_mechanism(progress: Progress) -> list[str]:
    """What a mechanism would take and was not shown; empty if it is established."""
    if not found_heads(progress):
        return ["no head was found to declare"]
    failed = []
    for step, says in (("sufficient", "sufficient"), ("necessary", "necessary")):
        if progress.verdict(step) != "supported":
            failed.append(f"that the found heads are {says}: {_outcome_of(step, progress)}")
    if _overshoots(progress):
        failed.append(f"that the found heads are sufficient: {_OVERSHOOTS}")
    nulls = [step for step in progress.measured if step.startswith("null_")]
    if not any(progress.verdict(step) == "ruled_out" for step in nulls):
        failed.append("that nothing else does it: no candidate was ruled out")
    for step in nulls:
        if progress.verdict(step) in ("supported", "refuted"):
            failed.append(f"that nothing else does it: {claim_sentence(step, progress).rstrip('.')}")
    return failed


def _outcome_of(step: str, progress: Progress) -> str:
    """`inconclusive (missing: interval)`, `not declared`."""
    if step not in progress.measured:
        why = progress.skipped.get(step) or (f"{FAILED}: {progress.reasons(step)}")
        return f"not declared, {why}"
    words = verdict_words(step, progress)
    return words[0].lower() + words[1:]


def _mechanism(progress: Progress, facts: Facts) -> str:
    """What was found in the residual stream and in the heads."""
    if not {"residual", "heads"} & set(progress.measured):
        return "Where the answer is computed was not measured."
    found = found_heads(progress)
    if not found and not carriers(progress):
        return "Nothing was found: no single layer and position, and no single head, carries the answer."
    heads = ""
    if found:
        heads = _circuit(progress, found)
    elif "heads" in progress.measured:
        heads = "No single head recovers enough of it to be named."
    where = residual_sentence(progress) if "residual" in progress.measured else ""
    mlp = ""
    if top := sites(progress, "mlp")[:1]:
        at = facts.place(int(top[0]["pos"]))
        mlp = (
            f"Of the MLPs, layer {top[0]['layer']} at position {at} recovers most ({top[0]['recovery']:.2f})."
        )
    reading = (
        "(Tokens are the first pair's; numbers are the share of the logit difference one site recovers.)"
    )
    return sentences(heads, where, mlp, reading)


def _circuit(progress: Progress, found: list[Head]) -> str:
    """What each found head does, as far as it was measured."""
    moving, roles = moving_layer(progress), progress.numbers("roles").get("roles", {})
    effects, opposing = head_effects(progress, "found"), head_effects(progress, "opposing")
    before: list[str] = []
    mover: list[str] = []
    after: list[str] = []
    for layer, head in found:
        name = label((layer, head))
        role = f"{roles[name]} head, " if name in roles else ""
        group = after if moving is None or layer > moving else mover if layer == moving else before
        group.append(f"{name} ({role}{effects[name]:.2f})")
    if moving is None:
        return f"Heads that carry the answer: {listed(after)}."
    edges = (edge.partition(" -> ") for edge in progress.numbers("composition").get("steered", {}))
    against = [f"{name} ({effect:.2f})" for name, effect in opposing.items()]
    parts = [
        _clause(mover, "move", f"the answer to the last position, in layer {moving}"),
        _clause(before, "matter", "before that"),
        _clause(after, "act", "on it later"),
        listed(f"{earlier} steers where {later} looks" for earlier, _, later in edges),
        _clause(against, "work", "against it"),
    ]
    return f"{'; '.join(part for part in parts if part)}."


def _clause(names: list[str], verb: str, rest: str) -> str:
    """`L9.H6 moves it`, `L9.H6 and L10.H0 move it`; nothing without names."""
    return f"{listed(names)} {verb}{'s' if len(names) == 1 else ''} {rest}" if names else ""


def _limits(progress: Progress) -> list[str]:
    """What was not shown, the most serious first."""
    limits = [
        f"that the found heads are {step}: {_outcome_of(step, progress)}."
        for step in ("sufficient", "necessary")
        if step in progress.measured and progress.verdict(step) != "supported"
    ]
    limits.append("that this holds for prompts of other forms than those of setup.py.")
    if found_heads(progress):
        limits.append("that the set of heads is minimal or complete: heads were patched one by one.")
    if "mlp" in progress.measured:
        limits.append("what the MLPs compute: they were patched as a whole.")
    return limits

"""What the study of heads declares, chosen from what exploring found: strong sites, their set, and nulls.

A claim is a choice from the log alone, so a resumed study makes the same ones. Its smallest effect of
interest is the largest of the grid that exploring exceeded by half: an effect of 1.5 S is decided by 24
clusters where its spread is half of it (docs/how_sure.md). See `heads.py` for the steps and `heads_log.py`
for the sentences; `templates/experiments/heads/claim.py.j2` for the experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxterp.autointerpret.hypothesis import SESOI_GRID
from mlxterp.text import percent
from mlxterp_agent.researchers.scripted.claims import Claim, sesoi_of
from mlxterp_agent.researchers.scripted.heads_log import (
    Facts,
    Head,
    facts_of,
    found_heads,
    head_effects,
    heads_of,
    label,
)
from mlxterp_agent.researchers.scripted.study import Progress, listed

MOST_SITES = 6
"""How many single sites are claimed."""
MOST_NULLS = 3
"""How many nulls are claimed."""
SET_SESOI = (0.3, 0.5)
"""The smallest effects of interest of the set: what is called sufficient or necessary does at least this."""
FEW_HEADS = 16
"""With at most this many other heads, they are claimed to do nothing as a set."""
LIKELY = 0.75
"""The largest share of what is to be ruled out that a candidate's explored effect may be."""
NEAR = 0.5
"""In half-widths of the interval to expect, how far from it a candidate is that comes first. In 120 divisions
of the landmarks one candidate or more was ruled out in 97 %, and one had an effect after all in 9 %."""
CONFIRMED = 0.75
"""The half-width of a first look's interval (24 clusters, stricter level) over that on 8 while exploring."""


def site_claims(progress: Progress) -> list[Claim]:
    """The strongest heads one by one, strongest first; those that oppose the answer among them.

    A head that was found alone is claimed as the set.
    """
    effects = claimed_heads(progress)
    alone = [name for name, effect in effects.items() if effect > 0]
    names = [name for name in effects if len(alone) > 1 or name not in alone][:MOST_SITES]
    return [_site_claim(i, name, effects[name], progress) for i, name in enumerate(names, 1)]


def claimed_heads(progress: Progress) -> dict[str, float]:
    """The effects of the heads that are claimed, strongest first."""
    every = head_effects(progress, "found") | head_effects(progress, "opposing")
    strongest = sorted(every, key=lambda name: (-abs(every[name]), name))[:MOST_SITES]
    return {name: every[name] for name in strongest}


def set_heads(progress: Progress) -> list[Head]:
    """The heads of the set: of those that are claimed, the ones that work for the answer."""
    return heads_of(name for name, effect in claimed_heads(progress).items() if effect > 0)


def set_claims(progress: Progress) -> list[Claim]:
    """That the found heads are sufficient, and that they are necessary: two methods, on the same pairs."""
    heads, together = set_heads(progress), progress.numbers("together")
    if not heads:
        return []
    sites, names = _sites(heads, progress), listed(map(label, heads))
    them = f"{names} together" if len(heads) > 1 else f"{names} alone"
    recovered, lost = together.get("sufficient"), together.get("necessary")
    enough, needed = _set_sesoi(recovered), _set_sesoi(lost)
    return [
        Claim(
            id="sufficient",
            sites=sites,
            source="clean",
            direction="increase",
            sesoi=enough,
            explored=recovered,
            claim=f"{them} {'are' if len(heads) > 1 else 'is'} sufficient: put into the corrupted run they "
            f"recover at least {percent(enough)} of the logit difference.",
            short=f"the set of {names} as sufficient ({percent(enough)})",
            rivals=("They need what other heads prepare on the clean prompt.", "Any heads would do as much."),
            falsified_if=f"they recover less than {percent(enough)} on held-out pairs, or random sets as "
            "much",
        ),
        Claim(
            id="necessary",
            sites=sites,
            source="corrupted",
            direction="decrease",
            sesoi=needed,
            explored=lost,
            claim=f"{them} {'are' if len(heads) > 1 else 'is'} necessary: with their output of the corrupted "
            f"run the clean run loses at least {percent(needed)} of the logit difference.",
            short=f"the set of {names} as necessary ({percent(needed)})",
            rivals=("The model has other ways to the answer.", "Any heads would do as much damage."),
            falsified_if=f"less than {percent(needed)} is lost on held-out pairs, or random sets cost as "
            "much",
        ),
    ]


def null_claims(progress: Progress) -> list[Claim]:
    """Sites that could have mattered and are expected not to, the likeliest to be ruled out first.

    A candidate's effect while exploring was at least half of what is to be ruled out. Where there are few
    other heads, all of them together are one, as program.md of such a scaffold asks.
    """
    facts, nulls = facts_of(progress), []
    others = _other_heads(progress, facts)
    if 0 < len(others) <= FEW_HEADS and found_heads(progress):
        sesoi, names = 0.1, listed(map(label, others))
        nulls.append(
            Claim(
                id="null_1",
                sites=_sites(others, progress),
                source="clean",
                direction="increase",
                sesoi=sesoi,
                explored=None,
                claim=f"The heads that were not found ({names}) recover at least {percent(sesoi)} of the "
                "logit difference together: the found ones are not all.",
                short=f"the other {len(others)} heads together ({percent(sesoi)})",
                rivals=("The found heads are all that the answer goes through.",),
                falsified_if=f"together they recover less than {percent(sesoi)} on held-out pairs",
                null=True,
            )
        )
    candidates, first = _candidates(progress)[: MOST_NULLS - len(nulls)], len(nulls) + 1
    return nulls + [_null_claim(i, each) for i, each in enumerate(candidates, first)]


@dataclass(frozen=True)
class _Candidate:
    """A site that exploring measured, whose effect is to be ruled out.

    Attributes:
        site: as a declaration writes it; `name` for people.
        half: of its interval while exploring, the half-width.
        sesoi: what is to be ruled out.
    """

    site: str
    name: str
    effect: float
    half: float
    sesoi: float = 0.0

    @property
    def slack(self) -> float:
        """How far the effect is from what is to be ruled out, in half-widths of the interval to expect."""
        return (self.sesoi - abs(self.effect)) / (CONFIRMED * max(self.half, 1e-3))


def _candidates(progress: Progress) -> list[_Candidate]:
    """The measured sites that are not claimed, each with the least effect of interest that can be ruled out:
    its own is at least half of that and at most `LIKELY` of it.

    Those come first whose interval on held-out pairs can be expected to end near it or before, the smallest
    share of what is to be ruled out before others.
    """
    claimed, found = claimed_heads(progress), []
    for each in _measured_sites(progress):
        size = abs(each.effect)
        within = [replace(each, sesoi=s) for s in SESOI_GRID if s / 2 <= size <= LIKELY * s]
        if within and each.name not in claimed:
            found.append(within[0])
    return sorted(found, key=lambda c: (c.slack < NEAR, abs(c.effect) / c.sesoi, c.site))


def _measured_sites(progress: Progress) -> list[_Candidate]:
    """Heads, and the outputs of attention and MLPs at the last position, as far as they were measured."""
    found = []
    for step in ("heads", "more_heads"):
        at = _positions(progress, step)
        for name, (effect, half) in progress.numbers(step).get("measured", {}).items():
            ((layer, head),) = heads_of([name])
            found.append(_Candidate(f"L{layer}.z.h{head}{at}", name, effect, half))
    for step, point, what in (("attention", "attn_out", "attention"), ("mlp", "mlp_out", "MLP")):
        for layer, (effect, half) in progress.numbers(step).get("last", {}).items():
            found.append(_Candidate(f"L{layer}.{point}@-1", f"the {what} of layer {layer}", effect, half))
    return found


def _site_claim(number: int, name: str, effect: float, progress: Progress) -> Claim:
    (head,) = heads_of([name])
    sesoi, (site,) = sesoi_of(effect), _sites([head], progress)
    does = "carries the answer" if effect > 0 else "works against the answer"
    where = " at the last position" if site.endswith("@-1") else ""
    moves = "raises" if effect > 0 else "lowers"
    return Claim(
        id=f"site_{number}",
        sites=(site,),
        source="clean",
        direction="increase" if effect > 0 else "decrease",
        sesoi=sesoi,
        explored=effect,
        claim=f"{name} by itself {does}{where}: put into the corrupted run its output {moves} the logit "
        f"difference by at least {percent(sesoi)} of the gap.",
        short=f"{name} by itself ({percent(sesoi)})",
        rivals=(
            f"Other heads in or near layer {head[0]} do as much.",
            "It is the strongest of many by chance.",
        ),
        falsified_if=f"its effect on held-out pairs is below {percent(sesoi)}, or placebo heads have it too",
    )


def _null_claim(number: int, candidate: _Candidate) -> Claim:
    up, sesoi = candidate.effect > 0, candidate.sesoi
    named = candidate.name[0].upper() + candidate.name[1:]
    return Claim(
        id=f"null_{number}",
        sites=(candidate.site,),
        source="clean",
        direction="increase" if up else "decrease",
        sesoi=sesoi,
        explored=candidate.effect,
        claim=f"{named} by itself {'raises' if up else 'lowers'} the logit difference by at least "
        f"{percent(sesoi)} of the gap; while exploring it was {percent(abs(candidate.effect))}.",
        short=f"{candidate.name} by itself ({percent(sesoi)})",
        rivals=("What exploring saw is smaller than would matter, and partly chance.",),
        falsified_if=f"its effect on held-out pairs is below {percent(sesoi)} in size",
        null=True,
    )


def _set_sesoi(effect: float | None) -> float:
    low, high = SET_SESOI
    return high if effect is not None and effect >= 1.3 * high else low


def _sites(heads: Sequence[Head], progress: Progress) -> tuple[str, ...]:
    """Heads where they were measured: at the last position if only that was patched."""
    later = heads_of(progress.numbers("more_heads").get("found", {}))
    steps = ("more_heads" if head in later else "heads" for head in heads)
    return tuple(
        f"L{layer}.z.h{head}{_positions(progress, step)}"
        for (layer, head), step in zip(heads, steps, strict=True)
    )


def _positions(progress: Progress, step: str) -> str:
    return "@-1" if progress.numbers(step).get("last_only") else ""


def _other_heads(progress: Progress, facts: Facts) -> list[Head]:
    named = {*found_heads(progress), *heads_of(head_effects(progress, "opposing"))}
    every = [(layer, head) for layer in range(facts.n_layers) for head in range(facts.n_heads)]
    return [head for head in every if head not in named]

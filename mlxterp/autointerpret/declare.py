"""From the result of an exploring experiment to a declaration that can be judged, as text to paste.

Lives here: which claim a result suggests, and its text. Does not live here: what may be declared, and reading
it (`hypothesis.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxterp.autointerpret.hypothesis import SESOI_GRID, read_hypothesis
from mlxterp.component_names import parse_component
from mlxterp.errors import DeclarationError

if TYPE_CHECKING:
    from mlxterp.results import AblationResult, HeadScoresResult, PatchingResult, PathPatchingResult

    Declarable = PatchingResult | AblationResult | PathPatchingResult | HeadScoresResult

POSITIVE_MARGIN = 2.0
"""A claim of an effect takes a smallest effect of interest this many times below what was measured: a judge
then finds it in more than 19 of 20 cases (effects of 1.5 times the smallest are found with 24 clusters)."""
NULL_MARGIN = 4.0
"""A claim of no effect takes a smallest effect this many times above it."""
NULL_SESOI = (0.1, 0.2)
"""What a claim of no effect may take: to rule out a larger one says little."""

_IMPORT = "from mlxterp.autointerpret import Hypothesis, InterventionClaim"
_ROLES = {
    "previous_token": "previous-token head",
    "induction": "induction head",
    "duplicate_token": "duplicate-token head",
}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One thing that a result suggests to claim.

    Attributes:
        sites: as a declaration spells them.
        effect: as a share of the gap, positive towards the run that activations come from.
        raises: whether the metric is higher where the effect is 1 than where it is 0.
        done: what is done there, as a phrase.
        intervention: of the declaration; None for a role.
        metric, role: one of them is "".
        scale: the effect that a judge measures where this one is 1, as far as it is known.
    """

    sites: tuple[str, ...]
    effect: float
    raises: bool
    done: str
    intervention: str | None
    metric: str = ""
    role: str = ""
    scale: float = 1.0

    @property
    def size(self) -> float:
        return abs(self.effect) * self.scale

    @property
    def named(self) -> str:
        return " with ".join(self.sites)


def declare(
    result: Declarable,
    *,
    site: str | Sequence[str] | None = None,
    id: str = "H001",
) -> str:
    """A declaration of what a result suggests, as Python to paste into the next experiment.py.

        print(declare(result))

    The claim is that the strongest site has its effect on pairs that nobody has looked at. The smallest
    effect of interest is the largest of the allowed ones at or below half of the measured effect. With
    `site`, the claim is about this one, and for an effect too small to claim it is the claim that there is
    none. Edit the text: the sentence, the rivals and the forecast are yours.

    Args:
        result: of `activation_patching`, `attribution_patching`, `ablate`, `path_patching` or
            `attention_scores` (that one declares a role).
        site: one that was measured, as "L9.z.h6" or "L9.H6"; a list for a set.
        id: the claim's name.

    Raises:
        DeclarationError: a result that no claim can be made from, a site that it does not hold, or no effect
            that is large enough.
    """
    found = _candidates(result)
    chosen = max(found, key=lambda each: each.size) if site is None else _of_site(found, site)
    allowed = [sesoi for sesoi in SESOI_GRID if sesoi <= chosen.size / POSITIVE_MARGIN]
    if allowed:
        sesoi, direction = allowed[-1], "increase" if chosen.raises == (chosen.effect > 0) else "decrease"
    else:
        if site is None:
            raise DeclarationError(
                f"the strongest effect, {chosen.effect:.3g} at {chosen.named}, is too small to claim: the "
                f"smallest effects of interest are {', '.join(map(str, SESOI_GRID))}, and an effect should "
                "be twice that. To claim that there is none, name the site: "
                f"declare(result, site={chosen.sites[0]!r})."
            )
        sesoi, direction = _null(chosen), "none"
    text = _text(chosen, direction, sesoi, id)
    read_hypothesis(text.encode())
    return text


def _null(chosen: _Candidate) -> float:
    allowed = [sesoi for sesoi in NULL_SESOI if sesoi >= NULL_MARGIN * chosen.size]
    if not allowed:
        raise DeclarationError(
            f"the effect {chosen.effect:.3g} at {chosen.named} is too small to claim and too large to rule "
            "out. Measure it on more pairs first."
        )
    return allowed[0]


def _of_site(found: Sequence[_Candidate], site: str | Sequence[str]) -> _Candidate:
    asked = [site] if isinstance(site, str) else list(site)
    try:
        wanted = {str(parse_component(each)) for each in asked}
    except ValueError as problem:
        raise DeclarationError(f"site={site!r}: {problem}.") from None
    for each in found:
        if {str(parse_component(name)) for name in each.sites} == wanted:
            return each
    shown = ", ".join(each.named for each in sorted(found, key=lambda each: -each.size)[:6])
    raise DeclarationError(
        f"this result does not hold {' with '.join(asked)}. It holds {len(found)}, of which the strongest "
        f"are: {shown}."
    )


def _candidates(result: Declarable) -> list[_Candidate]:
    # Only here: the contract is imported by programs that draw nothing and measure nothing.
    from mlxterp import results

    match result:
        case results.PatchingResult():
            found = _of_patching(result)
        case results.AblationResult():
            found = _of_ablation(result)
        case results.PathPatchingResult():
            found = _of_paths(result)
        case results.HeadScoresResult():
            found = _of_scores(result)
        case _:
            raise DeclarationError(
                f"declare was given a {type(result).__name__}. Give the result of activation_patching, "
                "attribution_patching, ablate, path_patching or attention_scores; or write the Hypothesis."
            )
    found = [each for each in found if each.effect == each.effect]
    if not found:
        raise DeclarationError(
            "this result holds no site with an effect that is a number, so nothing to claim."
        )
    return found


def _of_patching(result: PatchingResult) -> list[_Candidate]:
    source = "clean" if result.direction == "denoising" else "corrupted"
    whole = "pos" in result.axes and "pos" in result.labels and result.indices_of("pos")
    length = len(whole) if whole and whole == tuple(range(len(whole))) else None
    found = []
    for each in result.components():
        head = "" if each.head is None else f".h{each.head}"
        pos = "" if each.pos is None else f"@{each.pos if length is None else each.pos - length}"
        found.append(
            _Candidate(
                sites=(f"L{each.layer}.{result.component}{head}{pos}",),
                effect=each.effect,
                raises=(result.clean_metric > result.corrupted_metric) == (source == "clean"),
                done=f"patched from the {source} run",
                intervention=f'InterventionClaim("patch", source="{source}")',
                metric=result.metric,
            )
        )
    return found


def _of_ablation(result: AblationResult) -> list[_Candidate]:
    against = 0.0 if result.corrupted_metric is None else result.corrupted_metric
    return [
        _Candidate(
            sites=tuple(str(parse_component(name)) for name in row.components),
            effect=1.0 - row.share,
            raises=against > result.clean_metric,
            done=f"{result.ablation}-ablated",
            intervention=f'InterventionClaim("{result.ablation}")',
            metric=result.metric,
            # A share of the metric itself is about half as much of the gap between two opposite answers.
            scale=1.0 if result.corrupted_metric is not None else 0.5,
        )
        for row in result.rows
        if row.group != "random" and not row.keep and row.components
    ]


def _of_paths(result: PathPatchingResult) -> list[_Candidate]:
    receivers = json.dumps(list(result.receivers))
    return [
        _Candidate(
            sites=tuple(str(parse_component(name)) for name in sender.split(" + ")),
            effect=effect,
            raises=result.corrupted_metric > result.clean_metric,
            done=f"patched from the corrupted run along the paths into {', '.join(result.receivers)}",
            intervention=f'InterventionClaim("path_patch", source="corrupted", receivers={receivers})',
            metric=result.metric,
        )
        for sender, effect in zip(result.senders, result.effects.tolist(), strict=True)
    ]


def _of_scores(result: HeadScoresResult) -> list[_Candidate]:
    return [
        _Candidate(
            sites=(f"L{each.layer}.z.h{each.head}",),
            effect=each.effect,
            raises=True,
            done="read where it attends",
            intervention=None,
            role=_ROLES[name],
        )
        for name in result.scores
        if name in _ROLES
        for each in result.top_heads(name, result.score(name).size)
    ]


def _text(chosen: _Candidate, direction: str, sesoi: float, id: str) -> str:
    none = direction == "none"
    unit = "attention mass" if chosen.role else f"the gap in {chosen.metric}"
    rival = (
        "It has an effect on other prompts than these."
        if none
        else "Other components of the same layer do as well."
    )
    values: dict[str, Any] = {
        "id": id,
        "claim": _sentence(chosen, direction, sesoi),
        "site": list(chosen.sites),
        "direction": direction,
        "sesoi": sesoi,
        "forecast": {"supported": 0.6, "refuted": 0.05, "ruled_out": 0.35},
        "rivals": [rival],
        "falsified_if": f"on held-out pairs it is {'at least' if none else 'below'} {sesoi} of {unit}",
        **({"role": chosen.role} if chosen.role else {"metric": chosen.metric}),
    }
    lines = [f"    {name}={json.dumps(value)}," for name, value in values.items()]
    if chosen.intervention is not None:
        lines.insert(3, f"    intervention={chosen.intervention},")
    return "\n".join([_IMPORT, "", "HYPOTHESIS = Hypothesis(", *lines, ")", ""])


def _sentence(chosen: _Candidate, direction: str, sesoi: float) -> str:
    if chosen.role:
        verb = "is no" if direction == "none" else "is a"
        return f"{chosen.named} {verb} {chosen.role}."
    if direction == "none":
        return f"{chosen.named}, {chosen.done}, moves {chosen.metric} by less than {sesoi} of the gap."
    moved = "raises" if direction == "increase" else "lowers"
    return f"{chosen.named}, {chosen.done}, {moved} {chosen.metric} by at least {sesoi} of the gap."

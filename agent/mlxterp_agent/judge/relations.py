"""What a new finding says about earlier ones: it agrees by another method, rules out a rival, or overturns.

Reads the lines of the log only, so the same log gives the same relations. Nothing is rewritten: the new line
names the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry, retractions
from mlxterp.autointerpret.fingerprint import SYNONYMS
from mlxterp.component_names import canonical_component
from mlxterp_agent.storage.record import tier_of, verdict_of

_DENOISING = ("patch", "path_patch", "steer", "clamp_feature")
_EFFECTS = ("supported", "refuted")


@dataclass(frozen=True)
class Relations:
    """The ids of earlier findings that a new one bears on.

    Attributes:
        agrees_with: one about the same sites and metric that another method decided in the same sense.
        rules_out_rival_of: one whose declared rival this measurement rules out.
        retracts: those that the same measurement on other clusters has now overturned.
    """

    agrees_with: str | None = None
    rules_out_rival_of: str | None = None
    retracts: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any] | None:
        """The `relations` of a line's record; None where there are none."""
        values = {
            "agrees_with": self.agrees_with,
            "rules_out_rival_of": self.rules_out_rival_of,
            "retracts": list(self.retracts),
        }
        return {name: value for name, value in values.items() if value} or None


def relations(
    declared: Mapping[str, Any], verdict: str, entries: Iterable[ExperimentEntry], *, mirrored: bool
) -> Relations:
    """The relations of a claim with this verdict to the findings among these lines.

    Args:
        mirrored: every pair comes in both directions: noising is then the same measurement as denoising, and
            the two are one method.
    """
    if verdict not in (*_EFFECTS, "ruled_out"):
        return Relations()
    known = list(entries)
    overturned = retractions(known)
    agrees: str | None = None
    rival: str | None = None
    retracts = []
    for entry in known:
        theirs = (entry.record or {}).get("declared")
        if theirs is None or tier_of(entry) not in ("finding", "claim") or entry.experiment_id in overturned:
            continue
        if _rules_out_rival(declared, verdict, entry, theirs):
            rival = entry.experiment_id
        if not _same_subject(declared, theirs):
            continue
        mine, other = _sense(declared, verdict), _sense(theirs, verdict_of(entry))
        if mine is None or other is None:
            continue
        if _method(declared, mirrored=mirrored) != _method(theirs, mirrored=mirrored):
            agrees = entry.experiment_id if mine == other else agrees
        elif mine != other:
            retracts.append(entry.experiment_id)
    return Relations(agrees, rival, tuple(retracts))


def _same_subject(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both claim an effect at the same sites, on the same metric. Roles are descriptive."""
    if one.get("role") or other.get("role"):
        return False
    return _sites(one) == _sites(other) and one["metric"] == other["metric"]


def _sites(declared: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(canonical_component(site)) for site in declared["site"])


def _method(declared: Mapping[str, Any], *, mirrored: bool) -> tuple[str, str]:
    done = declared["intervention"]
    op, source = SYNONYMS.get(done["op"], done["op"]), done["source"]
    if op == "resample":
        op, source = "patch", "corrupted"
    if op not in _DENOISING or (mirrored and op == "patch"):
        source = "either"
    return op, source


def _sense(declared: Mapping[str, Any], verdict: str) -> int | None:
    """0 if no effect was found, 1 if the edited run moved towards the other one, −1 if away from it; None
    where the line does not tell which.

    Counted for a metric that is higher in the clean run; with another all signs turn, and comparisons stay.
    """
    direction = declared["direction"]
    if verdict == "ruled_out" or (verdict == "supported" and direction == "none"):
        return 0
    if direction in ("none", "either"):
        return None
    op, source = _method(declared, mirrored=False)
    sign = 1 if direction == "increase" else -1
    towards = 1 if op in _DENOISING and source == "clean" else -1
    return sign * towards * (1 if verdict == "supported" else -1)


def _rules_out_rival(
    declared: Mapping[str, Any], verdict: str, entry: ExperimentEntry, theirs: Mapping[str, Any]
) -> bool:
    """Whether a claim that builds on this finding decides against one of its declared rivals: a site that the
    rival names has no effect, or the head does more than every other head of its layer."""
    if entry.experiment_id not in declared.get("builds_on", ()) or verdict_of(entry) not in _EFFECTS:
        return False
    if declared.get("more_than"):
        return verdict == "supported" and _same_subject(declared, theirs)
    if declared.get("role") or _sense(declared, verdict) != 0 or _sites(declared) & _sites(theirs):
        return False
    rivals = " ".join(map(str, theirs.get("rivals", ()))).lower()
    return all(_is_named(site, rivals) for site in declared["site"])


def _is_named(site: str, text: str) -> bool:
    found = canonical_component(site)
    spellings = [site, str(found)]
    if found.name == "z" and found.head is not None:
        spellings += [f"L{found.layer}.H{found.head}", f"L{found.layer}.z.h{found.head}"]
    words = [word.strip(".,;:()'\"") for word in text.split()]
    return any(spelling.lower() in words for spelling in spellings)

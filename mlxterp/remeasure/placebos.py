"""Sites to compare a claim's with: of the same kind and position, in layers nearby, drawn by hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxterp.causal.batching.sweep import n_heads_of
from mlxterp.component_names import GLOBAL_NAMES, ComponentName
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.remeasure.edits import read_sites
from mlxterp.remeasure.measurement import SiteSet

N_PLACEBOS = 24
FEWEST_PLACEBOS = 6
"""With fewer sites than this, random directions at the claim's own sites take their place."""
NEARBY = 2
"""Layers on each side from which placebos are drawn first."""
_BY_DIRECTION = ("steer", "add", "project_out", "clamp_feature")
_WITHOUT_DIRECTIONS = ("path_patch", "attention_knockout")


def placebo_sites(
    model: InterpretableModel, claim: Mapping[str, Any], seed: int, n: int = N_PLACEBOS
) -> list[SiteSet]:
    """`n` sets like the claim's, or as many as there are, none of which holds a site of the claim.

    One site: the same hook point, with a head if it has one, at the same position, within `NEARBY` layers,
    and from the nearest other layers where those are too few. A set: as many of each kind in each layer,
    and from layers ever further away where these make too few different sets.

    What is said of a direction (steering, a feature, a projection), and what has fewer than `FEWEST_PLACEBOS`
    such sites, is compared with random directions at its own sites, each as long as the operation's change;
    path patches and knockouts with the sites that there are; a path patch with senders that come before a
    receiver, since others have no path into it.
    """
    claimed = read_sites(model, claim["site"])
    op = claim["intervention"]["op"]
    by_direction = [SiteSet(tuple(claim["site"]), direction_seed=seed * n + i) for i in range(n)]
    if op in _BY_DIRECTION or any(site.name in GLOBAL_NAMES for site in claimed):
        if op in _WITHOUT_DIRECTIONS:
            raise SweepError(f"{op} from {claimed[0]} has no placebo: there is no other site like it.")
        return by_direction
    until = _last_receiver(claim["intervention"].get("receivers", ()), model.n_layers)
    if len(claimed) == 1:
        found = _singles(model, claimed[0], seed, n, until)
    else:
        found = _sets(model, claimed, seed, n, until)
    if len(found) < FEWEST_PLACEBOS and op not in _WITHOUT_DIRECTIONS:
        return by_direction
    return found


def other_heads(model: InterpretableModel, claim: Mapping[str, Any]) -> list[SiteSet]:
    """Every other head of the claimed head's layer, at the same position: what "more than the other heads of
    the layer" is measured against.

    Raises:
        SweepError: a claim about anything but one head.
    """
    claimed = read_sites(model, claim["site"])
    if len(claimed) != 1 or claimed[0].head is None:
        raise SweepError(f"{claim['site']} is not one head, so its layer has no other heads. Name one head.")
    (own,) = claimed
    heads = range(n_heads_of(model, own.name))
    return [SiteSet((str(replace(own, head=head)),)) for head in heads if head != own.head]


def _singles(model: InterpretableModel, own: ComponentName, seed: int, n: int, until: int) -> list[SiteSet]:
    ordered = _nearest(model, own, f"{seed}", until)
    near = [site for site in ordered if abs(_layer(site) - _layer(own)) <= NEARBY]
    far = ordered[len(near) :]
    drawn = (sorted(near, key=lambda site: _hash(f"{seed}", site)) + far)[:n]
    return [SiteSet((str(site),)) for site in drawn]


def _sets(
    model: InterpretableModel, claimed: tuple[ComponentName, ...], seed: int, n: int, until: int
) -> list[SiteSet]:
    found: dict[frozenset[ComponentName], SiteSet] = {}
    for reach in range(model.n_layers):
        for draw in range(4 * n):  # draws may repeat a set where there are few
            if len(found) == n:
                return list(found.values())
            chosen: list[ComponentName] = []
            for member in claimed:
                every = _nearest(model, member, f"{seed} {reach} {draw}", until, reach)
                free = next((site for site in every if site not in claimed and site not in chosen), None)
                if free is None:
                    return list(found.values())
                chosen.append(free)
            found.setdefault(frozenset(chosen), SiteSet(tuple(map(str, chosen))))
    return list(found.values())


def _last_receiver(receivers: Sequence[str], n_layers: int) -> int:
    """The layer of the last receiver: no sender of this layer or a later one is a placebo."""
    layers = [re.match(r"L(\d+)\.", name) for name in receivers]
    return max((int(layer[1]) if layer else n_layers for layer in layers), default=n_layers)


def _nearest(
    model: InterpretableModel, own: ComponentName, salt: str, until: int, reach: int = 0
) -> list[ComponentName]:
    """All sites like this one but itself, in layers before `until`: those within reach by hash, then the
    nearest layers first."""
    heads = [None] if own.head is None else list(range(n_heads_of(model, own.name)))
    every = [replace(own, layer=layer, head=head) for layer in range(until) for head in heads]
    return sorted(
        (site for site in every if site != own),
        key=lambda site: (max(reach, abs(_layer(site) - _layer(own))), _hash(salt, site)),
    )


def _layer(site: ComponentName) -> int:
    assert site.layer is not None, "sites outside the layers have no neighbours"
    return site.layer


def _hash(salt: str, site: ComponentName) -> str:
    return hashlib.sha256(f"{salt} {site}".encode()).hexdigest()

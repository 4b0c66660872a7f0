"""A sketch of the circuit that was found: the sites of supported findings, by layer.

A site is drawn only if a claim about an effect at it was supported on held-out pairs. An edge between two
sites is drawn only if a path patch along it was supported: that two heads both matter says nothing about one
feeding the other. The text of the sketch says the same for readers who do not see it.

Lives here: which sites and edges, and where they stand. Does not live here: how they are drawn
(`templates/_evidence.html.j2`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxterp.component_names import ComponentName, parse_component
from mlxterp.reports.evidence import HeldOut, site_label
from mlxterp.reports.sourced import Name, Reference, Sentence, Sourced, joined, sentence
from mlxterp.text import clip

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

_BOX, _TALL, _GAP, _ROW = 96, 38, 12, 62
_LEFT, _TOP = 92, 44
_NARROWEST = 320


@dataclass(frozen=True)
class Node:
    """A site: its label, its effect by itself (None if it was only tested in a set), and its place."""

    label: str
    effect: Sourced | None
    x: int
    y: int


@dataclass(frozen=True)
class Edge:
    """A path along which a patch was supported, from point to point."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class CircuitSketch:
    """What the template draws; `text` says it in words. Sizes are in pixels."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    layers: tuple[tuple[str, int], ...]
    width: int
    height: int
    text: Sentence

    box: tuple[int, int] = (_BOX, _TALL)


@dataclass
class _Found:
    """What is known of one site."""

    ids: list[str]
    effect: Sourced | None = None


def circuit_sketch(
    entries: Sequence[ExperimentEntry], numbers: Mapping[str, HeldOut], retracted: Mapping[str, str]
) -> CircuitSketch | None:
    """The sketch of what these entries established; None if no effect was supported."""
    sites: dict[str, _Found] = {}
    sets: list[Sentence] = []
    paths: list[tuple[str, str, str]] = []
    for entry in entries:
        declared = _supported(entry, retracted)
        if declared is None:
            continue
        name, held_out = entry.experiment_id, numbers.get(entry.experiment_id)
        effect = None if held_out is None else held_out.end("effect")
        claimed = [site_label(str(site)) for site in declared.get("site") or ()]
        for site in claimed:
            sites.setdefault(site, _Found([])).ids.append(name)
            if len(claimed) == 1 and sites[site].effect is None:
                sites[site].effect = effect
        if len(claimed) > 1:
            members = joined(map(Name, claimed), " and ")
            sets.append(sentence(f"{_as(declared)}: ", members, _with(effect), " (", Reference(name), ")"))
        receivers = (declared.get("intervention") or {}).get("receivers") or ()
        paths += [(site, str(receiver), name) for site in claimed for receiver in receivers]
    if not sites:
        return None
    return _laid_out(sites, sets, paths)


def _supported(entry: ExperimentEntry, retracted: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The declaration of a supported effect that was not overturned; None of anything else."""
    record = entry.record or {}
    declared = record.get("declared")
    if not isinstance(declared, Mapping) or entry.experiment_id in retracted:
        return None
    is_effect = record.get("verdict") == "supported" and declared.get("direction") != "none"
    return declared if is_effect and record.get("tier") in ("finding", "claim") else None


def _as(declared: Mapping[str, Any]) -> str:
    """What the set was shown to be."""
    done = declared.get("intervention") or {}
    if done.get("op") == "patch" and done.get("source") == "clean":
        return "sufficient"
    takes_away = done.get("op") in ("zero", "mean", "resample") or done.get("source") == "corrupted"
    return "necessary" if takes_away else f"with an effect ({clip(str(done.get('op')), 40)})"


def _with(effect: Sourced | None) -> Sentence:
    return Sentence() if effect is None else sentence(": effect ", effect)


def _laid_out(
    sites: Mapping[str, _Found], sets: Sequence[Sentence], paths: Sequence[tuple[str, str, str]]
) -> CircuitSketch:
    rows: dict[int, list[str]] = {}
    for site in sites:
        rows.setdefault(_layer(site), []).append(site)
    layers = sorted(rows)
    widest = max(map(len, rows.values()))
    width = max(_NARROWEST, _LEFT + widest * (_BOX + _GAP))
    height = _TOP + _ROW * len(layers) + _TOP
    nodes: dict[str, Node] = {}
    labels = []
    for i, layer in enumerate(layers):
        y = height - _TOP - _ROW * (i + 1) + (_ROW - _TALL) // 2
        labels.append(("input" if layer < 0 else f"layer {layer}", y + _TALL // 2))
        for j, site in enumerate(sorted(rows[layer], key=_order)):
            nodes[site] = Node(site, sites[site].effect, _LEFT + j * (_BOX + _GAP), y)
    edges, named = [], []
    for start, receiver, name in paths:
        end = nodes.get(receiver.rpartition(".")[0]) or nodes.get(receiver)
        if start not in nodes or (end is None and receiver != "logits"):
            continue
        a = nodes[start]
        x2, y2 = (a.x + _BOX // 2, _TOP - 14) if end is None else (end.x + _BOX // 2, end.y + _TALL)
        edges.append(Edge(a.x + _BOX // 2, a.y, x2, y2))
        named.append(sentence(Name(start), " to ", Name(receiver), " (", Reference(name), ")"))
    text = sentence(
        "From the input up: ",
        joined(
            (_node_text(site, sites[site]) for layer in layers for site in sorted(rows[layer], key=_order)),
            "; ",
        ),
        ". ",
    )
    if sets:
        text = sentence(text, "Together ", joined(sets, "; "), ". ")
    if named:
        text = sentence(text, "Edges that were supported: ", joined(named, "; "), ".")
    else:
        text = sentence(text, "No edge between them was tested by a claim, so none is drawn.")
    if any("@" in site for site in sites):
        text = sentence(text, " After @ stands the position; negative ones count from the end.")
    return CircuitSketch(tuple(nodes.values()), tuple(edges), tuple(labels), width, height, text)


def _node_text(site: str, found: _Found) -> Sentence:
    ids = joined([Reference(name) for name in dict.fromkeys(found.ids)])
    return sentence(Name(site), _with(found.effect), " (", ids, ")")


def _layer(site: str) -> int:
    """The layer of a site; -1 for what comes before the first, and for a site that names none."""
    found = _parsed(site)
    return -1 if found is None or found.layer is None else found.layer


def _order(site: str) -> tuple[str, int, str]:
    """By hook point, then by head."""
    found = _parsed(site)
    return ("", 0, site) if found is None else (found.name, -1 if found.head is None else found.head, site)


def _parsed(site: str) -> ComponentName | None:
    try:
        return parse_component(site)
    except ValueError:
        return None

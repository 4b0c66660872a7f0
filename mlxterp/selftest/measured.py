"""What the selftest measures: every head of a world once, by the functions that the judge's process runs.

A table of cells, from which claims are judged by lookup. SmolLM2's takes a minute and more, and is kept in
the cache directory by the model's digest, the library's version and the seed of the data.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mlxterp._files import write_atomically
from mlxterp._version import __version__
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import ioi_pairs
from mlxterp.models.fetch import cache_dir
from mlxterp.remeasure import GateCells, SiteSet, gate_cells, measure_placebos, placebo_sites, run_pairs
from mlxterp.statistics.arrays import Floats, Ints
from mlxterp.statistics.clusters import clusters
from mlxterp.statistics.decisions import N_FIRST, N_MOST, Gate, Prefixed, gate
from mlxterp.worlds import World, weight_shuffled

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much in all."""

MODEL = "smollm2-135m"
SCHEMA = "selftest-cells/1"
PATCH = {"op": "patch", "source": "clean"}


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Every head of a world, patched from the clean run by itself.

    Attributes:
        sites: their names.
        change: a = patched − corrupted metric `[sites, pairs]`.
        gap: g = clean − corrupted metric `[pairs]`.
        clusters: of each pair; every pair is one.
        placebos: indices of each site's placebos `[sites, placebos]`.
    """

    sites: tuple[str, ...]
    change: Floats
    gap: Floats
    clusters: tuple[str, ...]
    placebos: Ints


@dataclass(frozen=True, eq=False)
class MeasuredWorld:
    """A world's table beside its gate.

    Attributes:
        name: for people.
        behaviour: whether there is one.
        effects: by site the effect that was planted; only of sites where it is known.
        gate: the model's, and the twin's that controls it.
    """

    name: str
    behaviour: bool
    table: HeadTable
    gate: GateCells
    twin: GateCells | None
    effects: dict[str, float]


def decide_gate(cells: GateCells, rule: Callable[..., Gate] = gate) -> Gate:
    """The gate on measured cells of pairs that are one cluster each."""
    pairs, others, behind = cells.pairs, cells.candidates, cells.prefixed
    return rule(
        pairs.gap,
        np.r_[pairs.answer_preferred, pairs.foil_preferred],
        np.r_[pairs.answer_rank, pairs.foil_rank],
        cells.d_vocab,
        candidates=None if others is None else others.answer_preferred & others.foil_preferred,
        prefixed=None
        if behind is None
        else Prefixed(behind.gap, np.r_[behind.answer_preferred, behind.foil_preferred]),
    )


def measure_world(
    world: World,
    *,
    position: str = "",
    heads: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    twin: bool = False,
    progress: Progress | None = None,
) -> MeasuredWorld:
    """All heads of a world, or some, and its gate.

    Args:
        position: of the prompt, as "@-1"; all by default.
        seed: of placebos and prefixes.
        twin: measure the gate's control too.
    """
    return MeasuredWorld(
        name=world.name,
        behaviour=world.behaviour,
        table=measure_heads(world, position=position, heads=heads, seed=seed, progress=progress),
        gate=gate_cells(world.model, world.pairs, world.metric, world.candidates, seed=seed),
        twin=_twin_gate(world, seed) if twin else None,
        effects={
            f"{site}{position}": known.effect
            for site, known in world.truth.items()
            if known.effect is not None and ".z.h" in site
        },
    )


def measure_heads(
    world: World,
    *,
    position: str = "",
    heads: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadTable:
    """The table of a world's heads, each measured as a claim about it and as a placebo of others."""
    model = world.model
    chosen = heads or [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    sites = [f"L{layer}.z.h{head}{position}" for layer, head in chosen]
    runs = run_pairs(model, world.pairs, world.metric)
    # By layers, so that there is progress to see.
    patched, step = [], model.n_heads
    for first in range(0, len(sites), step):
        part = [SiteSet((site,)) for site in sites[first : first + step]]
        claim = {"site": list(part[0].sites), "intervention": PATCH}
        patched.append(measure_placebos(model, claim, part, runs).patched)
        if progress is not None:
            progress(f"measuring the heads of {world.name}", min(first + step, len(sites)), len(sites))
    at = {site: i for i, site in enumerate(sites)}
    near = []
    for site in sites:
        drawn = placebo_sites(model, {"site": [site], "intervention": PATCH}, seed)
        near.append([at[each.sites[0]] for each in drawn if each.sites[0] in at and each.sites[0] != site])
    zero = runs.metric_of["corrupted"]
    return HeadTable(
        sites=tuple(sites),
        change=np.concatenate(patched) - zero,
        gap=runs.metric_of["clean"] - zero,
        clusters=clusters(world.pairs).of_pair,
        placebos=np.array([each[: min(map(len, near))] for each in near], dtype=np.int64).reshape(
            len(sites), -1
        ),
    )


def smollm2_world(seed: int) -> World:
    """SmolLM2-135M on indirect objects that nobody selected: 24 clusters to explore and 48 to confirm."""
    model = InterpretableModel(MODEL)
    n = N_FIRST + N_MOST
    drawn = ioi_pairs(model, 2 * n, seed=seed, shown=False)
    return World("SmolLM2-135M, indirect objects", model, tuple(drawn[:n]), tuple(drawn[n:]))


def smollm2_table(world: World, seed: int, progress: Progress) -> HeadTable:
    """The world's 270 heads at the last position, from the cache if they were measured before."""
    path = _kept_at(world.model, seed)
    table = _read(path)
    if table is None:
        table = measure_heads(world, position="@-1", seed=seed, progress=progress)
        with suppress(OSError):  # a cache that cannot be written costs time only
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _written(table))
    return table


def measured_smollm2(world: World, seed: int, progress: Progress) -> MeasuredWorld:
    """The world's heads, its gate and the gate's control."""
    table = smollm2_table(world, seed, progress)
    progress(f"the gate of {world.name} and of its shuffled twin", 0, 1)
    return MeasuredWorld(
        name=world.name,
        behaviour=True,
        table=table,
        gate=gate_cells(world.model, world.pairs, world.metric, world.candidates, seed=seed),
        twin=_twin_gate(world, seed),
        effects={},
    )


def _twin_gate(world: World, seed: int) -> GateCells:
    other = weight_shuffled(world, seed)
    return gate_cells(other.model, other.pairs, other.metric, other.candidates, seed=seed)


def _kept_at(model: InterpretableModel, seed: int) -> Path:
    machine = f"{version('mlx')} {blas.which().name}"
    what = f"{SCHEMA} {model.digest} {__version__} {_measuring_code()} {machine} {seed}"
    key = hashlib.sha256(what.encode())
    return cache_dir() / "selftest" / f"{MODEL}-{key.hexdigest()[:32]}.npz"


def _measuring_code() -> str:
    """The digest of the code that measures: a checkout changes it without a new version."""
    package = Path(__file__).resolve().parent.parent
    files = sorted(
        file for room in ("core", "causal", "remeasure") for file in (package / room).rglob("*.py")
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _written(table: HeadTable) -> bytes:
    file = BytesIO()
    names = json.dumps({"sites": table.sites, "clusters": table.clusters})
    np.savez(file, change=table.change, gap=table.gap, placebos=table.placebos, names=np.array(names))
    return file.getvalue()


def _read(path: Path) -> HeadTable | None:
    """The table that was kept; None if there is none, or what is there cannot be read."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            names = json.loads(str(kept["names"]))
            return HeadTable(
                tuple(names["sites"]), kept["change"], kept["gap"], tuple(names["clusters"]), kept["placebos"]
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None

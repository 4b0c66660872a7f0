"""Which pairs experiments may explore, and on which the judge confirms.

Three sources, the first that there is: `confirm_pairs(n, seed)` of setup.py draws fresh pairs for each claim;
`heldout.jsonl` holds items that no experiment reads; else the clusters of `setup.dataset` are divided by
`statistics.decisions.split`, with a salt that lies in the state directory. Only then is a part of the dataset
withheld from experiments.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlxterp._files import write_atomically
from mlxterp.autointerpret.encoding import LineError, decode_object
from mlxterp.errors import ProjectError
from mlxterp.statistics.clusters import all_mirrored, cluster_ids, hashed_order, one_direction
from mlxterp.statistics.decisions import N_MOST, split
from mlxterp.statistics.outcome import N_MIN
from mlxterp_agent.platform import NotRegular, read_or_none, read_regular
from mlxterp_agent.storage.state_dir import State

HELD_OUT = "heldout.jsonl"
SALT = "salt"

Source = Literal["confirm_pairs", "heldout.jsonl", "dataset"]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What claims are judged on.

    Attributes:
        source: where the pairs come from; None if there are too few.
        n_clusters: independent clusters of setup.dataset.
        explore: the pairs of setup.dataset that experiments see; None for all of them.
        order: clusters in the order of looks (not of fresh pairs).
        members: per cluster, what identifies its pairs in a job: indices into setup.dataset, or items.
        reason: why no claim can be judged; "" if it can.
        mirrored: whether every pair comes in both directions.
        copied: whether most prompts hold their answer, so that copying from the prompt explains it.
        n_tokens: how many tokens each prompt has, if all have as many.
        n_explored: clusters of the pairs that experiments see.
        of_pair: the cluster of each pair of setup.dataset.
    """

    source: Source | None = None
    n_clusters: int = 0
    explore: tuple[int, ...] | None = None
    order: tuple[str, ...] = ()
    members: Mapping[str, Sequence[Any]]
    reason: str = ""
    mirrored: bool = False
    copied: bool = False
    n_tokens: int | None = None
    n_explored: int = 0
    of_pair: tuple[str, ...] = ()

    def pairs(self, first: int, until: int, seed: int) -> dict[str, Any]:
        """The `pairs` of a job: those of the clusters from `first` up to `until`."""
        if self.source == "confirm_pairs":
            return {"confirm": {"n": N_MOST, "seed": seed, "clusters": [first, until]}}
        chosen = [each for cluster in self.order[first:until] for each in self.members[cluster]]
        return {"dataset" if self.source == "dataset" else "heldout": chosen}

    def without(self, shown: Collection[str], seen: Collection[str] = ()) -> HeldOut:
        """The same without clusters whose numbers were shown, and those that experiments measured. Fresh
        pairs are never spent."""
        left = tuple(each for each in self.order if each not in shown and each not in seen)
        if self.source in (None, "confirm_pairs") or len(left) == len(self.order):
            return self
        measured = len(set(self.order) & set(seen))
        if left and (not measured or len(left) >= N_MIN):
            return replace(self, order=left)
        why = f": experiments measured {measured} of {len(self.order)} clusters" if measured else ""
        return replace(self, source=None, order=(), reason=f"held-out pairs are spent{why}")

    def describe(self) -> str:
        """How many independent clusters there are and what can be decided with them, in a sentence."""
        if not self.n_clusters and self.source is None:
            return "no declared effect can be decided: setup.dataset holds no prompt pairs"
        if self.source is None:
            return f"no declared effect can be decided: {self.reason}"
        if self.source == "confirm_pairs":
            confirm, n = f"up to {N_MOST} fresh ones for each declared claim", N_MOST
            if not self.n_clusters:
                return f"setup.dataset holds no prompt pairs; {confirm.replace('ones', 'pairs')}: {_power(n)}"
        else:
            beside = "" if self.source == "dataset" else f" of {HELD_OUT}"
            confirm, n = f"{len(self.order)}{beside} to decide declared claims on", len(self.order)
        return f"{_count(self.n_explored)} to explore, {confirm}: {_power(n)}"


def _count(n: int) -> str:
    return f"{n} independent cluster{'s' * (n != 1)}"


_POWER = (
    (48, "from 1.25 times the smallest of interest on, where pairs differ by up to three quarters of it"),
    (24, "from 1.25 times the smallest of interest on, where pairs differ by up to half of it"),
    (N_MIN, "from 1.5 times the smallest of interest on, where pairs differ by up to half of it"),
)
"""What is decided with 95 % power with at least so many clusters (docs/how_sure.md)."""


def _power(n: int) -> str:
    found = next((says for least, says in _POWER if n >= least), None)
    if found is None:
        return f"too few for any verdict, which takes {N_MIN}"
    return f"enough for effects {found}"


def divide(facts: Mapping[str, Any], items: Sequence[Mapping[str, Any]] | None, salt: str) -> HeldOut:
    """The division of what setup.py offers.

    Args:
        facts: as the worker reports them: `pairs` (`mlxterp.causal.prompts.pair.list_pairs`) and
            `confirm_pairs`.
        items: of heldout.jsonl; None without one.
    """
    pairs = facts.get("pairs") or []
    of_pair = [str(pair["cluster"]) for pair in pairs]
    lengths = {n for pair in pairs for n in pair["n_tokens"]}
    common = HeldOut(
        members={},
        n_clusters=len(set(of_pair)),
        n_explored=len(set(of_pair)),
        mirrored=all_mirrored(pairs),
        copied=2 * sum(bool(pair["holds_answer"]) for pair in pairs) > len(pairs),
        n_tokens=lengths.pop() if len(lengths) == 1 else None,
        of_pair=tuple(of_pair),
    )
    if facts.get("confirm_pairs"):
        return replace(common, source="confirm_pairs")
    if items is not None:
        clusters = cluster_ids(items)
        return _looks(common, "heldout.jsonl", items, clusters, salt, explore=None)
    parts = split(of_pair, salt)
    if parts.reason is not None:
        return replace(common, reason=f"needs >= 24 independent clusters, setup.py has {common.n_clusters}")
    explored = tuple(i for i, cluster in enumerate(of_pair) if cluster in set(parts.explore))
    found = _looks(common, "dataset", pairs, of_pair, salt, explore=explored)
    return replace(
        found,
        order=parts.confirm,
        n_explored=len(parts.explore),
        members={each: found.members[each] for each in parts.confirm},
    )


def _looks(
    common: HeldOut,
    source: Source,
    pairs: Sequence[Mapping[str, Any]],
    of_pair: Sequence[str],
    salt: str,
    *,
    explore: tuple[int, ...] | None,
) -> HeldOut:
    members: dict[str, list[Any]] = {}
    for i in one_direction(pairs, of_pair, salt):
        members.setdefault(of_pair[i], []).append(i if source == "dataset" else dict(pairs[i]))
    order = hashed_order(of_pair, salt)[:N_MOST]
    return replace(common, source=source, explore=explore, order=order, members=members)


def salt_of(state: State) -> str:
    """The salt of this investigation, drawn once. Whoever knows it knows which clusters confirm."""
    path = state.root / SALT
    known = read_or_none(path)
    if known is None:
        known = secrets.token_hex(16).encode()
        write_atomically(path, known)
        path.chmod(0o600)
    return known.decode("ascii").strip()


def seed_of(salt: str, what: str) -> int:
    """A seed that whoever does not know the salt cannot predict."""
    return int.from_bytes(hashlib.sha256(f"{salt} {what}".encode()).digest()[:4], "big") >> 1


def take_items(project: Path, state: State, *, reseal: bool) -> str | None:
    """Moves heldout.jsonl out of the project, to where neither experiments nor agents read it: what was done,
    or None if there was none.

    Raises:
        ProjectError: there is another one already, or it is no regular file.
    """
    given, kept = project / HELD_OUT, state.sealed_dir / HELD_OUT
    if not os.path.lexists(given):
        return None
    try:
        data = read_regular(given)
    except NotRegular as problem:
        raise ProjectError(f"{given} is {problem}. Put the file itself there.") from None
    before = read_or_none(kept)
    if before is not None and before != data and not reseal:
        raise ProjectError(
            f"{given} is not the one that this investigation began with, which is {kept}. Remove it, or take "
            "the new one with --reseal."
        )
    _parse(data, given)
    write_atomically(kept, data)
    given.unlink()
    return f"{HELD_OUT} was moved to {kept}, where no experiment reads it"


def read_items(state: State) -> list[dict[str, Any]] | None:
    """The held-out items; None without any."""
    data = read_or_none(state.sealed_dir / HELD_OUT)
    return None if data is None else _parse(data, state.sealed_dir / HELD_OUT)


def _parse(data: bytes, path: Path) -> list[dict[str, Any]]:
    items = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = decode_object(line)
        except LineError as problem:
            raise ProjectError(f"{path}, line {number}: {problem}. Write one JSON object a line.") from None
        if not {"clean", "corrupted", "answer", "foil"} <= set(item):
            raise ProjectError(
                f"{path}, line {number} has {', '.join(item)}. Give clean, corrupted, answer and foil, and "
                "cluster and slice if you like."
            )
        items.append(item)
    if not items:
        raise ProjectError(f"{path} holds no item. Write one JSON object a line, or remove it.")
    return items

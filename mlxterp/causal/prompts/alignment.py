"""Which position of the clean prompt corresponds to which position of the corrupted one.

Patching position p of one run into position p of another means something only under a stated map.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np

from mlxterp.causal.prompts.encoding import Ids, side_by_side
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LengthMismatch, PositionsAligned, PromptPairError, TokenError

Align: TypeAlias = Literal["strict", "auto"] | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Alignment:
    """A map between positions.

    Attributes:
        kind: "strict" (same length, position to position), "auto" (common prefix and suffix) or "explicit".
        positions: (clean, corrupted), ascending; positions that are not listed are never patched.
        same_until: below this position both prompts of every pair hold the same tokens at the same place, so
            their activations are equal and patching has an effect of exactly 0.
    """

    kind: str
    positions: tuple[tuple[int, int], ...]
    same_until: int

    @property
    def stated(self) -> tuple[tuple[int, int], ...] | None:
        """The map as (clean, corrupted) positions; None where each position corresponds to itself."""
        return None if self.kind == "strict" else self.positions

    def to_dict(self) -> dict[str, Any]:
        """What results record."""
        facts = {"kind": self.kind, "first_difference": self.same_until}
        if self.kind == "strict":
            return facts
        return facts | {"clean_to_corrupted": [list(pair) for pair in self.positions]}


def align_positions(model: InterpretableModel, clean: Ids, corrupted: Ids, align: Align) -> Alignment:
    """The map for clean prompts `[n, length]` and their corrupted ones; any but "strict" gives a warning.

    Raises:
        LengthMismatch: unequal lengths without a map, or nothing in common at the end for "auto"; shows both.
        TokenError: an explicit map with a position that does not exist.
    """
    n_clean, n_corrupted = clean.shape[1], corrupted.shape[1]
    shorter = min(n_clean, n_corrupted)
    prefix = min(_common(c[:shorter], x[:shorter]) for c, x in zip(clean, corrupted, strict=True))
    if isinstance(align, str):
        if align not in ("strict", "auto"):
            raise PromptPairError(
                f"align={align!r} is not known. Pass 'strict', 'auto', or a list of (clean position, "
                "corrupted position)."
            )
        if n_clean == n_corrupted:
            return Alignment("strict", tuple((p, p) for p in range(n_clean)), prefix)
        shown = side_by_side(model, {"clean": clean[0], "corrupted": corrupted[0]})
        if align == "strict":
            raise LengthMismatch(
                f"clean has {n_clean} tokens, corrupted has {n_corrupted}, so positions don't correspond.\n"
                f"{shown}\n"
                'Choose prompts of the same length, or state the map: align="auto" (common prefix and common '
                "suffix), or align=[(clean position, corrupted position), …]."
            )
        # Where one prompt begins another, the ends still correspond: that is where the answer is read.
        ahead = min(prefix, shorter - 1)
        most = shorter - ahead
        suffix = min(_common(c[::-1][:most], x[::-1][:most]) for c, x in zip(clean, corrupted, strict=True))
        if suffix == 0:
            raise LengthMismatch(
                f'align="auto" maps the common prefix and the common suffix, and these prompts ({n_clean} '
                f"and {n_corrupted} tokens) end differently.\n"
                f"{shown}\n"
                "State the map yourself: align=[(clean position, corrupted position), …]."
            )
        positions = [(p, p) for p in range(ahead)]
        positions += [(n_clean - i, n_corrupted - i) for i in range(suffix, 0, -1)]
    else:
        positions = _explicit(align, n_clean, n_corrupted)
    found = Alignment(align if isinstance(align, str) else "explicit", tuple(positions), prefix)
    _warn(found, n_clean, n_corrupted)
    return found


def at_clean_positions(
    clean: mx.array, corrupted: mx.array, positions: Sequence[tuple[int, int]]
) -> mx.array:
    """The corrupted run's activations [n, pos, …] at the clean positions that correspond to theirs.

    A clean position without a counterpart keeps the clean activation, so that patching changes nothing there.
    """
    source, known = np.zeros(clean.shape[1], dtype=np.int64), np.zeros(clean.shape[1], dtype=bool)
    for here, there in positions:
        source[here], known[here] = there, True
    mapped = mx.array(known).reshape(1, -1, *[1] * (clean.ndim - 2))
    return mx.where(mapped, mx.take(corrupted, mx.array(source), axis=1), clean)


def _warn(alignment: Alignment, n_clean: int, n_corrupted: int) -> None:
    clean = sorted(set(range(n_clean)) - {c for c, _ in alignment.positions})
    corrupted = sorted(set(range(n_corrupted)) - {x for _, x in alignment.positions})
    warnings.warn(
        f"clean has {n_clean} tokens, corrupted has {n_corrupted}: positions are aligned by the "
        f"{alignment.kind} map, recorded in the result. Without a counterpart, and never patched: "
        f"clean {clean}, corrupted {corrupted}.",
        PositionsAligned,
        stacklevel=5,
    )


def _explicit(align: Sequence[tuple[int, int]], n_clean: int, n_corrupted: int) -> list[tuple[int, int]]:
    positions = []
    for entry in align:
        if len(entry) != 2:
            raise PromptPairError(
                f"align holds {entry!r}. Each entry is (clean position, corrupted position)."
            )
        for position, length, what in ((entry[0], n_clean, "clean"), (entry[1], n_corrupted, "corrupted")):
            if not -length <= position < length:
                raise TokenError(
                    f"align holds {tuple(entry)}, and the {what} prompt has no position {position}: it has "
                    f"{length} tokens. Positions are 0 to {length - 1}, or negative from the end."
                )
        positions.append((entry[0] % n_clean, entry[1] % n_corrupted))
    for side, what in ((0, "clean"), (1, "corrupted")):
        if len({entry[side] for entry in positions}) != len(positions):
            raise PromptPairError(f"align uses a {what} position twice: {positions}. Map each position once.")
    if not positions:
        raise PromptPairError("align is an empty list, so nothing could be patched. List at least one pair.")
    return sorted(positions)


def _common(a: Ids, b: Ids) -> int:
    """How many leading entries are equal."""
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else len(a)

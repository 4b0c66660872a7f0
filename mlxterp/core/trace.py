"""A trace: the tokens of one run, its logits, and the activations that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.core.hook_points import HookPoint, parse
from mlxterp.core.tokens import Padded, Tokens
from mlxterp.errors import MissingActivation


@dataclass(frozen=True, eq=False)
class Trace:
    """One run, as a value; `with model.trace(...) as t:` gives the same value. Activations are lazy mlx
    arrays.

    Attributes:
        batch: the rows, padded on the right where lengths differ.
        logits: [batch, pos, d_vocab].
        captured: what was asked for, by hook point.
    """

    batch: Padded
    logits: mx.array
    captured: Mapping[HookPoint, mx.array]
    split: Callable[[Any], list[str]]

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to undo: the run was over before the block began."""

    def __getitem__(self, point: str | HookPoint) -> mx.array:
        """`trace["L9.z"]`, with the axes that `hook_points` says.

        Raises:
            MissingActivation: it was not captured; the message lists what was.
        """
        wanted = parse(point)
        if wanted not in self.captured:
            have = ", ".join(self.names) or "nothing"
            raise MissingActivation(
                f"{wanted} was not captured. Captured: {have}. Add capture=['{wanted}'] to the trace."
            )
        return self.captured[wanted]

    def __contains__(self, point: str | HookPoint) -> bool:
        return parse(point) in self.captured

    @property
    def names(self) -> list[str]:
        """The hook points that were captured."""
        return [str(point) for point in self.captured]

    @property
    def activations(self) -> Mapping[str, mx.array]:
        """What was captured, by name."""
        return MappingProxyType({str(point): value for point, value in self.captured.items()})

    @property
    def tokens(self) -> Tokens:
        """Token ids [batch, pos]."""
        return self.batch.tokens

    @property
    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """[batch, pos], False at padding."""
        return self.batch.mask

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many tokens each row has."""
        return self.batch.lengths

    @property
    def last_logits(self) -> mx.array:
        """Logits at each row's own last token, [batch, d_vocab]."""
        return self.logits[mx.arange(len(self.lengths)), mx.array(self.batch.last)]

    @property
    def str_tokens(self) -> list[str] | list[list[str]]:
        """Each token's text: one list, or one per row of a batch."""
        rows = [self.split(row[:n].tolist()) for row, n in zip(self.tokens, self.lengths, strict=True)]
        return rows[0] if len(rows) == 1 else rows

"""A trace: the tokens of one run, its logits, and the activations that were asked for.

Two ways to one activation: `trace["L9.z"]` and `trace.layers[9].z`. Both give what was captured, or say what
was; neither runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp import other_libraries
from mlxterp.component_names import LAYER_NAMES
from mlxterp.core.hook_points import HookPoint, parse
from mlxterp.core.tokens import Padded, Tokens
from mlxterp.errors import MissingActivation, MissingAttribute, TokenError, UnknownHookPoint
from mlxterp.results import rendering
from mlxterp.results.views import Section, Table
from mlxterp.text import clip

_SHOWN = 40  # rows of a table in a notebook


class LayerActivations:
    """What was captured in one layer, as attributes: `trace.layers[9].z`."""

    def __init__(self, layer: int, captured: Mapping[str, mx.array]) -> None:
        self._layer, self._captured = layer, captured

    def __getattr__(self, name: str) -> mx.array:
        if name in self._captured:
            return self._captured[name]
        if name.startswith("__"):  # what Python and notebooks ask of any object
            raise AttributeError(name)
        have = ", ".join(self._captured) or "nothing"
        if name in LAYER_NAMES:
            todo = f"Add capture=['L{self._layer}.{name}'] to the trace, or capture='all'."
        else:
            todo = f"In a layer there are: {', '.join(LAYER_NAMES)}."
        raise MissingAttribute(
            f"layers[{self._layer}].{name} was not captured. Captured there: {have}. {todo}"
        )

    def __dir__(self) -> list[str]:
        return list(self._captured)

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {x.shape}" for name, x in self._captured.items())
        return f"layers[{self._layer}]: {held or 'nothing captured'}"


@dataclass(frozen=True, eq=False)
class Layers:
    """The layers of a trace: `len()` of them, each with what was captured there."""

    count: int
    captured: Mapping[HookPoint, mx.array]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, layer: int) -> LayerActivations:
        index = layer + self.count if layer < 0 else layer
        if not 0 <= index < self.count:
            raise IndexError(f"layers[{layer}]: the model has {self.count}, 0 to {self.count - 1}.")
        return LayerActivations(index, {p.name: x for p, x in self.captured.items() if p.layer == index})

    def __iter__(self) -> Iterator[LayerActivations]:
        return (self[layer] for layer in range(self.count))


@dataclass(frozen=True, eq=False)
class Trace:
    """One run, as a value; `with model.trace(...) as t:` gives the same value. Activations are mlx arrays,
    computed when the trace is made.

    Attributes:
        batch: the rows, padded on the right where lengths differ.
        logits: [batch, pos, d_vocab].
        captured: what was asked for, by hook point.
        n_layers: of the model.
        adds_positions: whether learned positions are in `embed`, so that it is not TransformerLens's.
    """

    batch: Padded
    logits: mx.array
    captured: Mapping[HookPoint, mx.array]
    split: Callable[[Any], list[str]]
    n_layers: int
    adds_positions: bool = False

    def __repr__(self) -> str:
        rows = f"{len(self.lengths)} rows" if len(self.lengths) > 1 else "1 row"
        held = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.activations.items())
        lines = (
            f"Trace: {rows} of {' and '.join(sorted({str(n) for n in self.lengths}))} tokens, "
            f"logits {tuple(self.logits.shape)}",
            f"captured: {held or 'nothing; name hook points in capture='}",
            "more: ['L9.z'], .layers[9].z, .logits, .last_logits, .tokens, .str_tokens",
        )
        return "\n  ".join(clip(line, 160) for line in lines)

    def _repr_html_(self) -> str:
        """What a notebook shows: the tokens with their most likely successor, and what was captured."""
        best = np.array(self.logits.argmax(axis=-1))
        rows = [
            (row, pos, int(token), text, following)
            for row, n in enumerate(self.lengths)
            for pos, (token, text, following) in enumerate(
                zip(
                    self.tokens[row, :n],
                    self._texts(self.tokens[row, :n]),
                    [self._texts([each])[0] for each in best[row, :n]],
                    strict=True,
                )
            )
        ]
        captured = [(name, str(tuple(x.shape)), str(x.dtype)) for name, x in self.activations.items()]
        shows = (
            Table("Tokens", ("row", "pos", "token id", "token", "most likely next"), tuple(rows[:_SHOWN])),
            Table("Captured", ("hook point", "shape", "type"), tuple(captured[:_SHOWN])),
        )
        more = max(len(rows), len(captured)) - _SHOWN
        said = f"Rows: {len(self.lengths)}, of {' and '.join(sorted({str(n) for n in self.lengths}))} tokens."
        said += f" The first {_SHOWN} of each are shown." if more > 0 else ""
        return rendering.fragment(Section("Trace", said, shows))

    def _texts(self, ids: Any) -> list[str]:
        """Each token's text, or "" where a model has no tokenizer."""
        try:
            return self.split([int(i) for i in ids])
        except TokenError:
            return [""] * len(ids)

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to undo: the run was over before the block began."""

    def __getitem__(self, point: str | HookPoint | tuple[str, int]) -> mx.array:
        """`trace["L9.z"]` or `trace["z", 9]`, with the axes that `hook_points` says.

        Raises:
            MissingActivation: it was not captured; the message lists what was.
        """
        wanted = parse(point)
        if self.adds_positions and wanted.spelled == "hook_embed":
            raise UnknownHookPoint(other_libraries.WITH_POSITIONS)
        if wanted not in self.captured:
            have = ", ".join(self.names) or "nothing"
            raise MissingActivation(
                f"{wanted} was not captured. Captured: {have}. Add capture=['{wanted}'] to the trace."
            )
        return self.captured[wanted]

    def __getattr__(self, name: str) -> mx.array:
        """`trace.embed`, `trace.final_norm`: what is in no layer; the rest is in `layers`.

        Raises:
            MissingAttribute: it was not captured; the message lists what was.
        """
        if name.startswith("__"):  # what Python and notebooks ask of any object
            raise AttributeError(name)
        captured = self.__dict__.get("captured", {})
        if HookPoint(name) in captured:
            found: mx.array = captured[HookPoint(name)]
            return found
        message = other_libraries.instead(other_libraries.TRACE, "A trace", name)
        if message is not None:
            raise MissingAttribute(message)
        have = ", ".join(str(point) for point in captured) or "nothing"
        raise MissingAttribute(
            f"A trace has no {name!r}. Captured: {have}. What is in a layer is read as trace.layers[9].z or "
            "trace['L9.z'], what is in none as trace.embed."
        )

    @property
    def layers(self) -> Layers:
        """Each layer's captured activations: `trace.layers[9].z`."""
        return Layers(self.n_layers, self.captured)

    def __contains__(self, point: str | HookPoint | tuple[str, int]) -> bool:
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

"""`AnalysisResult`: what every analysis returns. numpy arrays and plain values, never an mlx array.

Lives here: the abstract class, the registry of kinds, JSON both ways. Does not live here: how figures are
drawn (`mlxterp.plots`), how pages are made (`mlxterp.reports`), any computation on a model.

A new kind is a subclass with a `kind`; it registers itself, then reading back, reports and the log know it:

    @dataclass(frozen=True, eq=False, kw_only=True)
    class CircuitResult(AnalysisResult):
        kind: ClassVar[str] = "circuit"
        edges: Floats

The annotation of a field says how its value is converted (`mlxterp.results.values`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results import dataframe, markdown, rendering
from mlxterp.results.values import converters, json_safe, plain
from mlxterp.results.views import Component, Heatmap, Section, Show, drawables, number
from mlxterp.text import clip, visible

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA = "mlxterp-result/1"
REPR_WIDTH = 160
_MORE = "more: .summary(), .plot(), .top_components(k), .to_dataframe(), .to_markdown(), .to_json()"
_KINDS: dict[str, type[AnalysisResult]] = {}


@dataclass(frozen=True, eq=False, kw_only=True)
class AnalysisResult(ABC):
    """What an analysis measured, and on what.

    `measured_on` says what the numbers depend on: model, prompts, metric, alignment, BLAS; plain values only,
    where a non-finite number that went through JSON stays the string it became.
    Two results are equal when they are of one kind and hold the same values in every field (NaN equals NaN).
    """

    kind: ClassVar[str] = ""
    measured_on: Mapping[str, Any] = field(default_factory=dict)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in cls.__dict__:  # else `@dataclass` writes one with every array in it
            cls.__repr__ = AnalysisResult.__repr__  # type: ignore[method-assign]
        kind = cls.__dict__.get("kind", "")
        if not kind:
            return
        known = _KINDS.get(kind)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ResultError(
                f"the kind {kind!r} belongs to {known.__qualname__}; {cls.__qualname__} needs another."
            )
        _KINDS[kind] = cls

    def __post_init__(self) -> None:
        for name, convert in converters(type(self)).items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, convert(value))
        self._check()

    def _check(self) -> None:  # noqa: B027 - most kinds have nothing to refuse
        """Refuses fields that contradict each other; subclasses say which."""

    def _require_shape(self, names: Collection[str], shape: tuple[int, ...], of: str) -> None:
        """Refuses arrays of another shape than the one that follows from what they are values of."""
        for name in names:
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                raise ResultError(f"{name} of shape {values.shape} for {of}.")

    def _require_one_of(self, name: str, known: Collection[str]) -> None:
        """Refuses a word that is none of those that a field takes."""
        value = getattr(self, name)
        if value not in known:
            raise ResultError(f"{name} {value!r}. It is one of: {', '.join(known)}.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AnalysisResult):
            return NotImplemented
        return type(self) is type(other) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Three lines: what it is, its strongest components or main number, and how to see the rest."""
        strongest = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_components(5))
        said = self.summary().splitlines()
        main = f"strongest: {strongest}" if strongest else (said[1:] or said or [""])[0].strip()
        lines = (f"{type(self).__name__}: {self._headline()}", main, _MORE)
        return "\n  ".join(clip(visible(" ".join(line.split())), REPR_WIDTH) for line in lines)

    @property
    @abstractmethod
    def title(self) -> str:
        """A short heading: what was done to what."""

    def _headline(self, more: str = "") -> str:
        """The title, and on which model and prompts: how a summary begins."""
        on = measured_on_text(self.measured_on)
        return f"{self.title}{more}{f' ({on})' if on else ''}"

    @property
    def limits(self) -> tuple[str, ...]:
        """What limits every number here, as the analysis found it: `measured_on["cautions"]`."""
        return tuple(map(str, self.measured_on.get("cautions", ())))

    def _with_limits(self, *lines: str) -> str:
        """A summary of these lines, and one for each of `limits`."""
        return "\n".join([*lines, *self.limits])

    @abstractmethod
    def summary(self) -> str:
        """The main numbers with their meaning, in a few lines of plain text."""

    @abstractmethod
    def shows(self) -> tuple[Show, ...]:
        """What there is to see, as values that `plots.draw` and the reports know how to set."""

    def components(self) -> tuple[Component, ...]:
        """Every component with its effect, in the model's order; empty where none was measured."""
        return ()

    def top_components(self, k: int = 10) -> list[Component]:
        """The k components of largest effect in magnitude, strongest first. NaN effects are left out."""
        finite = [c for c in self.components() if math.isfinite(c.effect)]
        return sorted(finite, key=lambda c: -abs(c.effect))[:k]

    def find(self, label: str) -> Component:
        """The component of this label; an unknown one raises ResultError, listing those that exist."""
        every = self.components()
        for each in every:
            if each.label == label:
                return each
        names = [c.label for c in every]
        listed = ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:40])}, … ({len(names)} in all)"
        there = f"It holds: {listed}." if names else "It holds no components."
        raise ResultError(
            f"{type(self).__name__} has no component {label!r}. {there} Use one of these labels."
        )

    def plot(self) -> Figure:
        """All of this result's heatmaps and bars in one matplotlib figure (no pyplot state)."""
        return rendering.figure(self.shows(), title=self.title)

    def section(self) -> Section:
        """This result as a page sets it; a result that holds others gives each a section of its own."""
        return Section(self.title, self.summary(), self.shows(), self.measured_on)

    def panels(self) -> tuple[Heatmap, ...]:
        """Every matrix to explore in an interactive page (`mlxterp.reports.interactive`): by default those
        that `shows` has."""
        return tuple(show for show in drawables(self.shows()) if isinstance(show, Heatmap))

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain Python values. Non-finite numbers stay floats here."""
        values = {each.name: plain(getattr(self, each.name), each.name) for each in dataclasses.fields(self)}
        return {"kind": self.kind, "schema": SCHEMA, **values}

    def to_json(self, *, indent: int | None = None) -> str:
        """JSON that `from_json` reads back to an equal result; NaN and infinities become strings."""
        return json.dumps(json_safe(self.to_dict()), ensure_ascii=False, allow_nan=False, indent=indent)

    def to_dataframe(self) -> pd.DataFrame:
        """A pandas DataFrame with a row for each component: its label, hook point, effect and interval.

        Of a kind without components, the rows of its first table. `attrs` say what was measured on what.

        Raises:
            ResultError: pandas is not installed (`pip install 'mlxterp[dataframe]'`).
        """
        rows = dataframe.rows_of(self.components(), self.shows(), self.to_dict())
        on = dataframe.as_json(plain(self.measured_on, "measured_on"))
        return dataframe.frame(rows, {"kind": self.kind, "title": self.title, "measured_on": on})

    def to_parquet(self, path: str | Path) -> Path:
        """Writes `to_dataframe` as a Parquet file; returns its path.

        Raises:
            ResultError: pandas or pyarrow is not installed (`pip install 'mlxterp[dataframe]'`).
        """
        return dataframe.write_parquet(self.to_dataframe(), path)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> AnalysisResult:
        """The result that `to_dict` or a JSON document describes; the class follows from "kind"."""
        kind = data.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ResultError(
                f"no result kind {kind!r}. Known kinds: {', '.join(kinds())}. Give one of them as 'kind'."
            )
        if data.get("schema", SCHEMA) != SCHEMA:
            raise ResultError(f"a {kind} result of schema {data['schema']!r}; this version reads {SCHEMA!r}.")
        cls = _KINDS[kind]
        fields = dataclasses.fields(cls)
        given = {name: value for name, value in data.items() if name not in ("kind", "schema")}
        known = {each.name for each in fields}
        needed = {
            each.name
            for each in fields
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        }
        if set(given) - known or needed - set(given):
            raise ResultError(
                f"a {kind} result with unknown fields {sorted(set(given) - known)} and missing fields "
                f"{sorted(needed - set(given))}. Its fields are: {', '.join(sorted(known))}."
            )
        try:
            return cls(**given)
        except (TypeError, ValueError, KeyError) as problem:
            raise ResultError(f"a {kind} result whose fields cannot be read: {problem}") from problem

    @staticmethod
    def from_json(text: str) -> AnalysisResult:
        """The inverse of `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as problem:
            raise ResultError(f"this text is not JSON: {problem}. Give what `to_json()` wrote.") from problem
        if not isinstance(data, dict):
            raise ResultError(f"a result is a JSON object; this is a {type(data).__name__}.")
        return AnalysisResult.from_dict(data)

    def to_markdown(self) -> str:
        """Title, summary and tables as Markdown. Heatmaps become the table of their strongest cells."""
        parts = [f"## {markdown.escape(self.title)}", markdown.paragraphs(self.summary())]
        parts += [markdown.show(each) for each in self.shows()]
        parts.append(markdown.measured_on(self.measured_on))
        return "\n\n".join(part for part in parts if part) + "\n"

    def _repr_html_(self) -> str:
        return rendering.fragment(self.section())


def kinds() -> tuple[str, ...]:
    """The names of all kinds of results that can be read back."""
    return tuple(sorted(_KINDS))


def result_class(kind: str) -> type[AnalysisResult]:
    """The class of a kind that is known."""
    return _KINDS[kind]


def is_result(value: object) -> bool:
    """Whether this is the plain form of a result, as `to_dict` writes it."""
    return isinstance(value, Mapping) and isinstance(value.get("kind"), str) and value["kind"] in _KINDS


def measured_on_text(measured_on: Mapping[str, Any]) -> str:
    """`model smollm2-135m, 8 prompts`: where the numbers come from, for a summary."""
    parts = []
    if measured_on.get("model"):
        parts.append(f"model {measured_on['model']}")
    prompts = measured_on.get("prompts")
    if isinstance(prompts, (list, tuple)):
        parts.append(f"{len(prompts)} prompt{'s' if len(prompts) != 1 else ''}")
    return ", ".join(parts)

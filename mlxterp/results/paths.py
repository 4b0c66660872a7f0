"""`PathPatchingResult`: what each set of senders does through the paths into some receivers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.circuit import node_order
from mlxterp.results.shows import Component, Floats, Note, Show, Table, component_bars, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS

_MOST_BARS = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class PathPatchingResult(AnalysisResult):
    """Effects of path patching: senders take their corrupted value, and only the receivers hear of it.

    Attributes:
        senders: one label per effect: `L5.H5`, or of a set `L5.H5 + L6.H9`.
        effects: 0 = as clean: these paths do not matter; 1 = as corrupted: they carry everything.
        receivers: the inputs that heard of it: `L9.H6.q`, `L3.mlp`, `logits`.
        through: what lies on the paths: "mlps" (all other heads frozen), or "nothing" (direct edges only).
        metric, clean_metric, corrupted_metric: what was measured, and both baselines.
        per_example: [n_examples, n_senders] when several pairs were measured.
        ci_low, ci_high: an interval around each effect.
    """

    kind: ClassVar[str] = "path_patching"
    senders: tuple[str, ...] = field(metadata=TEXTS)
    effects: Floats = field(metadata=ARRAY)
    receivers: tuple[str, ...] = field(metadata=TEXTS)
    through: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    per_example: Floats | None = field(metadata=ARRAY, default=None)
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)

    def _check(self) -> None:
        if self.effects.shape != (len(self.senders),):
            raise ResultError(
                f"{len(self.senders)} senders and effects of shape {self.effects.shape}. Give one effect "
                "for each."
            )
        if self.through not in ("mlps", "nothing"):
            raise ResultError(f"paths through {self.through!r}. They lead through 'mlps' or 'nothing'.")

    @property
    def title(self) -> str:
        return f"Path patching into {', '.join(self.receivers)}"

    def components(self) -> tuple[Component, ...]:
        """Every sender, or set of senders, with its effect."""
        found = []
        for i, (label, effect) in enumerate(zip(self.senders, self.effects.tolist(), strict=True)):
            ci = None
            if self.ci_low is not None and self.ci_high is not None:
                ci = float(self.ci_low[i]), float(self.ci_high[i])
            layer = head = None
            name = ""
            if label.startswith("L") and " + " not in label:
                layer, kind, index = node_order(label)
                head, name = (index, "z") if kind == 1 else (None, "mlp_out")
            found.append(Component(label, effect, name=name, layer=layer, head=head, ci=ci))
        return tuple(found)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        paths = "through MLPs, other heads frozen" if self.through == "mlps" else "direct edges only"
        top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_components(5))
        return (
            f"{self.title} ({paths}{f'; {on}' if on else ''}). {self.metric} is {number(self.clean_metric)} "
            f"on clean and {number(self.corrupted_metric)} on corrupted.\n"
            f"Largest share of that gap: {top}."
        )

    def shows(self) -> tuple[Show, ...]:
        top = self.top_components(_MOST_BARS)
        bars = component_bars(
            top,
            title=f"{self.title}: the largest effects" if len(top) < len(self.senders) else self.title,
            unit=f"share of the {self.metric} gap",
            reading="0 is as clean, 1 as corrupted: the sender's change reaches the receivers only.",
        )
        table = Table(
            title="Effects of the senders",
            columns=("sender", "share of the gap"),
            rows=tuple((c.label, c.effect) for c in top),
        )
        note = Note(
            "An effect is what the sender does through these paths alone; paths through other heads are not "
            "in it."
        )
        return bars, table, note

"""`TurnPatchingResult`: the effect of patching each turn of a conversation.

Lives here: the kind. Does not live here: measuring it (`mlxterp.conversation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Show, Table, heatmap, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS, converted

_READINGS = {
    "denoising": "Recovery of the clean behaviour: 0 is as corrupted, 1 as clean.",
    "noising": "Loss of the clean behaviour: 0 is as clean, 1 as corrupted.",
}
_LONGEST = 24


@dataclass(frozen=True, eq=False, kw_only=True)
class TurnPatchingResult(AnalysisResult):
    """Effects of patching all tokens of one turn at once, layer by layer.

    Attributes:
        effects: [n_layers, n_turns].
        roles, texts: of each turn of the conversation that was patched.
        spans: (first token, one past the last) of each turn's content.
        layers: the number of each row's layer.
        component, direction, metric, clean_metric, corrupted_metric: as of a PatchingResult.
    """

    kind: ClassVar[str] = "turn_patching"
    effects: Floats = field(metadata=ARRAY)
    roles: tuple[str, ...] = field(metadata=TEXTS)
    texts: tuple[str, ...] = field(metadata=TEXTS)
    spans: tuple[tuple[int, int], ...] = field(
        metadata=converted(lambda spans: tuple((int(a), int(b)) for a, b in spans))
    )
    layers: tuple[int, ...] = field(metadata=converted(lambda layers: tuple(int(i) for i in layers)))
    component: str
    direction: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)

    def _check(self) -> None:
        shape = (len(self.layers), len(self.roles))
        if self.effects.shape != shape or len(self.texts) != shape[1] or len(self.spans) != shape[1]:
            raise ResultError(
                f"effects of shape {self.effects.shape} for {shape[0]} layers, {shape[1]} roles, "
                f"{len(self.texts)} texts and {len(self.spans)} spans. Give one of each per turn."
            )
        if self.direction not in _READINGS:
            raise ResultError(f"direction {self.direction!r}. Directions are: {', '.join(_READINGS)}.")

    @property
    def title(self) -> str:
        return f"Patching {self.component} by layer and turn"

    @property
    def turn_labels(self) -> tuple[str, ...]:
        """`0 user 'Where is …'`."""
        return tuple(
            f"{i} {role} {text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'!r}"
            for i, (role, text) in enumerate(zip(self.roles, self.texts, strict=True))
        )

    def components(self) -> tuple[Component, ...]:
        return tuple(
            Component(
                f"L{layer}.{self.component} turn {label}",
                float(self.effects[row, turn]),
                name=self.component,
                layer=layer,
            )
            for row, layer in enumerate(self.layers)
            for turn, label in enumerate(self.turn_labels)
        )

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_components(3))
        return "\n".join(
            [
                f"{self.title}, {self.direction}{f' ({on})' if on else ''}; all tokens of a turn together.",
                f"{self.metric}: clean {number(self.clean_metric)}, corrupted "
                f"{number(self.corrupted_metric)}. {_READINGS[self.direction]}",
                f"Strongest: {top or 'no effect is a finite number'}.",
            ]
        )

    def shows(self) -> tuple[Show, ...]:
        drawn = heatmap(
            self.effects.T,
            title=self.title,
            rows=("turn", self.turn_labels),
            columns=("layer", tuple(f"L{i}" for i in self.layers)),
            unit="recovery" if self.direction == "denoising" else "loss",
            reading=_READINGS[self.direction],
        )
        turns = zip(self.roles, self.texts, self.spans, strict=True)
        table = Table(
            title="Turns",
            columns=("turn", "role", "text", "first token", "last token"),
            rows=tuple((i, role, text, a, b - 1) for i, (role, text, (a, b)) in enumerate(turns)),
        )
        return drawn, table

"""`NeuronAttributionResult`: what single neurons wrote towards a token. `mlxterp.causal` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Show, Table, component_bars, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS, converted


def _numbers(value: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(item) for item in value)


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronAttributionResult(AnalysisResult):
    """The strongest neurons of one layer's MLP, by their direct contribution to a logit or a difference.

    Attributes:
        layer: whose MLP.
        neurons: indices of the strongest, by magnitude, strongest first.
        contributions, activations: of these, [k]; contributions in logits, positive favours the target.
        n_neurons: how many the MLP has.
        rest: the contribution of all other neurons together.
        bias: that of the MLP's output bias.
        total: contributions + rest + bias: what the whole MLP contributes.
        target_token, foil_token: token ids; foil None means the logit itself.
        position: where it was read, as an index into `tokens`.
        tokens: the prompt's tokens.
    """

    kind: ClassVar[str] = "neuron_attribution"
    layer: int
    neurons: tuple[int, ...] = field(metadata=converted(_numbers))
    contributions: Floats = field(metadata=ARRAY)
    activations: Floats = field(metadata=ARRAY)
    n_neurons: int
    rest: float = field(metadata=NUMBER)
    bias: float = field(metadata=NUMBER)
    total: float = field(metadata=NUMBER)
    target_token: int
    target_token_str: str
    foil_token: int | None = None
    foil_token_str: str | None = None
    position: int
    tokens: tuple[str, ...] = field(metadata=TEXTS)

    def _check(self) -> None:
        for name in ("contributions", "activations"):
            if getattr(self, name).shape != (len(self.neurons),):
                raise ResultError(
                    f"{name} of shape {getattr(self, name).shape} for {len(self.neurons)} neurons."
                )

    @property
    def title(self) -> str:
        return f"Neurons of layer {self.layer}: {self.towards}"

    @property
    def towards(self) -> str:
        """`' Paris'`, or `' Paris' over ' Rome'`."""
        foil = f" over {self.foil_token_str!r}" if self.foil_token_str is not None else ""
        return f"{self.target_token_str!r}{foil}"

    def components(self) -> tuple[Component, ...]:
        """The strongest neurons, `L3.N17`."""
        return tuple(
            Component(f"L{self.layer}.N{neuron}", float(value), name="neuron", layer=self.layer)
            for neuron, value in zip(self.neurons, self.contributions, strict=True)
        )

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.components()[:5])
        return (
            f"{self.title}{f' ({on})' if on else ''}.\n"
            f"The MLP contributes {number(self.total)} logits: {number(float(self.contributions.sum()))} by "
            f"the {len(self.neurons)} strongest of {self.n_neurons:,} neurons, {number(self.rest)} by the "
            f"others, {number(self.bias)} by its bias.\n"
            f"Strongest: {top}. Positive favours {self.target_token_str!r}."
        )

    def shows(self) -> tuple[Show, ...]:
        rows = (
            *(
                (c.label, float(a), c.effect)
                for c, a in zip(self.components(), self.activations, strict=True)
            ),
            ("all other neurons", None, self.rest),
            ("bias", None, self.bias),
            ("the MLP", None, self.total),
        )
        return (
            component_bars(
                self.components()[:12],
                title=f"Strongest neurons of layer {self.layer}",
                unit="logits",
                reading=f"In logits; positive favours {self.towards}. The final norm's scale is this run's.",
            ),
            Table(title="What the MLP wrote", columns=("part", "activation", "logits"), rows=rows),
        )

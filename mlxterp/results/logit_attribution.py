"""`LogitAttributionResult`: what each component wrote towards a token. `mlxterp.causal` measures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Note, Show, Table, component_bars, heatmap, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS

_READING = "In logits; positive favours {towards}. The final norm's scale is that of this run."


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitAttributionResult(AnalysisResult):
    """Direct contributions to the logit of `target_token`, or to its difference from `foil_token`'s.

    Attributes:
        head_contributions: [n_layers, n_heads], in logits.
        attn_contributions: [n_layers]: the heads of a layer and the output bias of its attention.
        mlp_contributions: [n_layers]; None for a model without MLPs.
        embed_contribution: token embedding (and learned positions).
        bias_contribution: what no component writes: biases of the final norm and the unembedding.
        total: the sum of embedding, attention, MLPs and bias.
        logit: what the model itself computes for the same quantity; `total` agrees with it within rounding.
        target_token, foil_token: token ids; foil None means the logit itself.
        position: where it was read, as an index into `tokens`.
        tokens: the prompt's tokens.
    """

    kind: ClassVar[str] = "logit_attribution"
    head_contributions: Floats = field(metadata=ARRAY)
    attn_contributions: Floats = field(metadata=ARRAY)
    mlp_contributions: Floats | None = field(metadata=ARRAY, default=None)
    embed_contribution: float = field(metadata=NUMBER)
    bias_contribution: float = field(metadata=NUMBER, default=0.0)
    total: float = field(metadata=NUMBER)
    logit: float = field(metadata=NUMBER)
    target_token: int
    target_token_str: str
    foil_token: int | None = None
    foil_token_str: str | None = None
    position: int = -1
    tokens: tuple[str, ...] = field(metadata=TEXTS, default=())

    def _check(self) -> None:
        n_layers = self.head_contributions.shape[0]
        if self.head_contributions.ndim != 2:
            raise ResultError(
                f"head_contributions of shape {self.head_contributions.shape}; it is [n_layers, n_heads]."
            )
        for name, values in (("attn", self.attn_contributions), ("mlp", self.mlp_contributions)):
            if values is not None and values.shape != (n_layers,):
                raise ResultError(f"{name}_contributions of shape {values.shape} for {n_layers} layers.")

    @property
    def title(self) -> str:
        return f"Direct logit attribution: {self.towards}"

    @property
    def towards(self) -> str:
        """`' Paris'`, or `' Paris' over ' Rome'`."""
        foil = f" over {self.foil_token_str!r}" if self.foil_token_str is not None else ""
        return f"{self.target_token_str!r}{foil}"

    def components(self) -> tuple[Component, ...]:
        """The embedding, heads, MLPs, attention biases that are not zero, and the constant bias."""
        found = [Component("embed", self.embed_contribution, name="embed")]
        n_layers, n_heads = self.head_contributions.shape
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is n/a, and no warning
            attn_bias = self.attn_contributions - self.head_contributions.sum(axis=1)
        for layer in range(n_layers):
            for head in range(n_heads):
                effect = float(self.head_contributions[layer, head])
                found.append(Component(f"L{layer}.H{head}", effect, name="z", layer=layer, head=head))
            if abs(attn_bias[layer]) > 1e-3 * (1 + np.abs(self.head_contributions[layer]).sum()):
                found.append(
                    Component(f"L{layer}.attn_bias", float(attn_bias[layer]), name="attn_bias", layer=layer)
                )
            if self.mlp_contributions is not None:
                effect = float(self.mlp_contributions[layer])
                found.append(Component(f"L{layer}.mlp_out", effect, name="mlp_out", layer=layer))
        if self.bias_contribution:
            found.append(Component("bias", self.bias_contribution, name="bias"))
        return tuple(found)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        quantity = "logit" if self.foil_token is None else "logit difference"
        groups = ", ".join(f"{name} {number(value)}" for name, value in self._groups())
        top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_components(5))
        return (
            f"{self.title}{f' ({on})' if on else ''}.\n"
            f"The {quantity} is {number(self.logit)}; "
            f"the contributions add up to {number(self.total)}: {groups}.\n"
            f"Largest single contributions: {top}. Positive favours {self.target_token_str!r}."
        )

    def _groups(self) -> tuple[tuple[str, float], ...]:
        groups = [("embedding", self.embed_contribution), ("attention", float(self.attn_contributions.sum()))]
        if self.mlp_contributions is not None:
            groups.append(("MLPs", float(self.mlp_contributions.sum())))
        groups.append(("bias", self.bias_contribution))
        return tuple(groups)

    def shows(self) -> tuple[Show, ...]:
        n_layers, n_heads = self.head_contributions.shape
        layers = tuple(f"L{i}" for i in range(n_layers))
        reading = _READING.format(towards=self.towards)
        drawn: list[Show] = [
            component_bars(
                self.top_components(12),
                title=f"Largest contributions to {self.towards}",
                unit="logits",
                reading=reading,
            ),
            heatmap(
                self.head_contributions.T,
                title="Contribution of each head",
                rows=("head", tuple(f"H{i}" for i in range(n_heads))),
                columns=("layer", layers),
                unit="logits",
                reading=reading,
            ),
        ]
        per_layer, names = [self.attn_contributions], ["attn_out"]
        if self.mlp_contributions is not None:
            per_layer, names = [*per_layer, self.mlp_contributions], [*names, "mlp_out"]
        drawn.append(
            heatmap(
                np.stack(per_layer),
                title="Contribution of each layer's attention and MLP",
                rows=("component", names),
                columns=("layer", layers),
                unit="logits",
                reading=reading,
            )
        )
        rows = (
            *self._groups(),
            ("sum of the contributions", self.total),
            ("computed by the model", self.logit),
        )
        drawn.append(Table(title="Where the logits come from", columns=("part", "logits"), rows=rows))
        gap = abs(self.total - self.logit)
        if not gap <= 1e-3 * max(1.0, abs(self.logit)):
            drawn.append(
                Note(
                    f"The contributions miss the model's own value by {number(gap)}: do not rely on them.",
                    "caution",
                )
            )
        return tuple(drawn)

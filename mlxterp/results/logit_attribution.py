"""What each component, and each neuron of an MLP, wrote towards a token. `mlxterp.causal` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Component, Floats, Show, Table, bars, cautions, heatmap, listed, numbered
from mlxterp.text import number


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitAttributionResult(AnalysisResult):
    """Direct contributions to the logit of `target_token`, or to its difference from `foil_token`'s.

    Attributes:
        head_contributions: [n_layers, n_heads], in logits; NaN in layers of a hybrid without attention heads.
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
    head_contributions: Floats
    attn_contributions: Floats
    mlp_contributions: Floats | None = None
    embed_contribution: float
    bias_contribution: float = 0.0
    total: float
    logit: float
    target_token: int
    target_token_str: str
    foil_token: int | None = None
    foil_token_str: str | None = None
    position: int = -1
    tokens: tuple[str, ...] = ()

    def _check(self) -> None:
        if self.head_contributions.ndim != 2:
            raise ResultError(
                f"head_contributions of shape {self.head_contributions.shape}; it is [n_layers, n_heads]."
            )
        n_layers = self.head_contributions.shape[0]
        self._require_shape(("attn_contributions", "mlp_contributions"), (n_layers,), f"{n_layers} layers")

    @property
    def title(self) -> str:
        return f"Direct logit attribution: {self.towards}"

    @property
    def towards(self) -> str:
        """`' Paris'`, or `' Paris' over ' Rome'`."""
        return _towards(self.target_token_str, self.foil_token_str)

    @property
    def n_prompts(self) -> int:
        """Over how many prompts the contributions are."""
        return len(self.measured_on["prompts"]) if "reduced" in self.measured_on else 1

    def components(self) -> tuple[Component, ...]:
        """The embedding, heads, MLPs, attention biases that are not zero, and the constant bias."""
        found = [Component("embed", self.embed_contribution, name="embed")]
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is n/a, and no warning
            attn_bias = self.attn_contributions - self.head_contributions.sum(axis=1)
        for layer, heads in enumerate(self.head_contributions):
            of_layer = []
            if np.isnan(heads).all():  # a hybrid's layer without attention heads
                of_layer.append(("attn_out", self.attn_contributions[layer]))
            else:
                found += [
                    Component(f"L{layer}.H{head}", float(effect), name="z", layer=layer, head=head)
                    for head, effect in enumerate(heads)
                ]
            if abs(attn_bias[layer]) > 1e-3 * (1 + np.abs(heads).sum()):
                of_layer.append(("attn_bias", attn_bias[layer]))
            if self.mlp_contributions is not None:
                of_layer.append(("mlp_out", self.mlp_contributions[layer]))
            found += [Component(f"L{layer}.{name}", float(v), name=name, layer=layer) for name, v in of_layer]
        if self.bias_contribution:
            found.append(Component("bias", self.bias_contribution, name="bias"))
        return tuple(found)

    def summary(self) -> str:
        quantity = "logit" if self.foil_token is None else "logit difference"
        groups = ", ".join(f"{name} {number(value)}" for name, value in self._groups())
        return self._with_limits(
            f"{self._headline()}.\n"
            f"The {quantity} is {number(self.logit)}; "
            f"the contributions add up to {number(self.total)}: {groups}.\n"
            f"Largest single contributions: {listed(self.top_components(5))}. Positive favours "
            f"{self.target_token_str!r}."
        )

    def _groups(self) -> tuple[tuple[str, float], ...]:
        groups = [("embedding", self.embed_contribution), ("attention", float(self.attn_contributions.sum()))]
        if self.mlp_contributions is not None:
            groups.append(("MLPs", float(self.mlp_contributions.sum())))
        return (*groups, ("bias", self.bias_contribution))

    def shows(self) -> tuple[Show, ...]:
        n_layers, n_heads = self.head_contributions.shape
        layers = ("layer", numbered("L", n_layers))
        n = self.n_prompts
        over = f"; mean over {n} prompts, each with the final norm's scale of its run." if n > 1 else ""
        reading = f"In logits; positive favours {self.towards}{over or _ONE_RUN}"
        by_layer = {"attn_out": self.attn_contributions}
        if self.mlp_contributions is not None:
            by_layer["mlp_out"] = self.mlp_contributions
        largest = bars(
            self.top_components(12),
            title=f"Largest contributions to {self.towards}",
            unit="logits",
            reading=reading,
            zeros=False,
        )
        heads = heatmap(
            self.head_contributions.T,
            title="Contribution of each head",
            rows=("head", numbered("H", n_heads)),
            columns=layers,
            unit="logits",
            reading=reading,
        )
        parts = heatmap(
            np.stack(list(by_layer.values())),
            title="Contribution of each layer's attention and MLP",
            rows=("component", tuple(by_layer)),
            columns=layers,
            unit="logits",
            reading=reading,
        )
        sums = (("sum of the contributions", self.total), ("computed by the model", self.logit))
        table = Table("Where the logits come from", ("part", "logits"), (*self._groups(), *sums))
        gap = abs(self.total - self.logit)
        adds_up = gap <= 1e-3 * max(1.0, abs(self.logit))
        limit = f"The contributions miss the model's own value by {number(gap)}: do not rely on them."
        return largest, heads, parts, table, *cautions(() if adds_up else (limit,))


_ONE_RUN = ". The final norm's scale is that of this run."


def _towards(target: str, foil: str | None) -> str:
    return f"{target!r} over {foil!r}" if foil is not None else repr(target)


def mean_attribution(results: Sequence[LogitAttributionResult]) -> LogitAttributionResult:
    """The mean over prompts, of one result per prompt; the only one as it is.

    Its figures, summary and components are of the mean. Where answers differ, the token is −1 and called "the
    answer".
    """
    first = results[0]
    if len(results) == 1:
        return first

    def mean(name: str) -> Any:
        return np.mean([getattr(result, name) for result in results], axis=0)

    same = len({(r.target_token, r.foil_token) for r in results}) == 1
    prompts = [prompt for r in results for prompt in r.measured_on["prompts"]]
    return replace(
        first,
        head_contributions=mean("head_contributions"),
        attn_contributions=mean("attn_contributions"),
        mlp_contributions=None if first.mlp_contributions is None else mean("mlp_contributions"),
        embed_contribution=mean("embed_contribution"),
        bias_contribution=mean("bias_contribution"),
        total=mean("total"),
        logit=mean("logit"),
        target_token=first.target_token if same else -1,
        target_token_str=first.target_token_str if same else "the answer",
        foil_token=first.foil_token if same or first.foil_token is None else -1,
        foil_token_str=first.foil_token_str if same or first.foil_token is None else "the foil",
        tokens=first.tokens if len({r.tokens for r in results}) == 1 else (),
        measured_on=dict(first.measured_on) | {"prompts": prompts, "reduced": "mean over prompts"},
    )


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
    neurons: tuple[int, ...]
    contributions: Floats
    activations: Floats
    n_neurons: int
    rest: float
    bias: float
    total: float
    target_token: int
    target_token_str: str
    foil_token: int | None = None
    foil_token_str: str | None = None
    position: int
    tokens: tuple[str, ...]

    def _check(self) -> None:
        n = len(self.neurons)
        self._require_shape(("contributions", "activations"), (n,), f"{n} neurons")

    @property
    def title(self) -> str:
        return f"Neurons of layer {self.layer}: {self.towards}"

    @property
    def towards(self) -> str:
        """`' Paris'`, or `' Paris' over ' Rome'`."""
        return _towards(self.target_token_str, self.foil_token_str)

    def components(self) -> tuple[Component, ...]:
        """The strongest neurons, `L3.N17`."""
        return tuple(
            Component(f"L{self.layer}.N{neuron}", value, name="neuron", layer=self.layer)
            for neuron, value in zip(self.neurons, self.contributions.tolist(), strict=True)
        )

    def summary(self) -> str:
        return self._with_limits(
            f"{self._headline()}.\n"
            f"The MLP contributes {number(self.total)} logits: {number(self.contributions.sum())} by "
            f"the {len(self.neurons)} strongest of {self.n_neurons:,} neurons, {number(self.rest)} by the "
            f"others, {number(self.bias)} by its bias.\n"
            f"Strongest: {listed(self.components()[:5])}. Positive favours {self.target_token_str!r}."
        )

    def shows(self) -> tuple[Show, ...]:
        strongest = self.components()
        drawn = bars(
            strongest[:12],
            title=f"Strongest neurons of layer {self.layer}",
            unit="logits",
            reading=f"In logits; positive favours {self.towards}. The final norm's scale is this run's.",
            zeros=False,
        )
        rows = (
            *((c.label, a, c.effect) for c, a in zip(strongest, self.activations.tolist(), strict=True)),
            ("all other neurons", None, self.rest),
            ("bias", None, self.bias),
            ("the MLP", None, self.total),
        )
        return drawn, Table("What the MLP wrote", ("part", "activation", "logits"), rows)

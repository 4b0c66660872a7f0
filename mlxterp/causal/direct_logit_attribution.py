"""Direct logit attribution: how much each component writes towards a token.

What components add to the residual stream is projected on unembedding rows, with the final norm's scale
frozen. Indirect effects, through later components, are measured by `activation_patching.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.finite import require_finite, require_finite_runs
from mlxterp.causal.prompts.cautions import of_form
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    position_index,
    require_model,
    str_tokens,
    token_id,
    token_rows,
)
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.norms import IDENTITY, read_norm
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import tapped
from mlxterp.errors import CapabilityUnavailable, PromptPairError, UnknownHookPoint
from mlxterp.measurements import recorder
from mlxterp.metrics import Floats
from mlxterp.results import LogitAttributionResult, NeuronAttributionResult

DOWN_PROJECTION = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "fc_out", "w2", "proj_2")
"""What models call the last linear layer of an MLP, whose inputs are its neurons."""


def direct_logit_attribution(
    model: InterpretableModel,
    text: Prompt,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    position: int = -1,
) -> LogitAttributionResult:
    """What the embedding, each head and each MLP add to the logit of `answer`, or to `answer` over `foil`.

    The final residual stream is a sum of what components wrote. Each summand is scaled by the final norm's
    factor *of this run* and projected on the token's unembedding row (or the difference of two), so the
    contributions add up to the logit within rounding. Biases that no component writes are their own number.
    Costs one forward.

    Args:
        answer: one token, as text or id; by default the model's first choice.
        foil: if given, contributions are to logit[answer] − logit[foil].
        position: whose next token is predicted; negative ones count from the end.

    Returns:
        contributions in logits, per head under grouped-query attention too; positive favours `answer`. In a
        hybrid, layers without attention heads have NaN for each head, and their whole part in attn. For a
        model with a logit softcap they are of the logit before the cap (`measured_on["softcap"]`).

    Raises:
        CapabilityUnavailable: the model's final norm or unembedding has no known formula.
        NotFinite: a component writes NaN or infinity; names it.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". The norm is frozen, not
    linearised: an effect through the norm's scale is not attributed to anyone.
    """
    require_model(model)
    architecture = model.architecture
    architecture.require("unembedding", "final_norm_formula", "attn_out")
    architecture.require_in_some_layer("head_outputs")
    has_mlp = architecture.capabilities["mlp_out"].available
    tokens = token_rows(model, [text], "attributed")
    at = position_index(position, tokens.shape[1])
    parts = ["attn_out", *(["mlp_out"] if has_mlp else [])]
    layers, with_heads = range(model.n_layers), architecture.layers_with("head_outputs")
    points = [HookPoint(name, layer) for name in parts for layer in layers]
    points += [HookPoint("z", layer) for layer in with_heads]
    first, last = HookPoint("resid_pre", 0), HookPoint("resid_post", model.n_layers - 1)
    with architecture.float32_stream():
        logits, captured = model.run(mx.array(tokens), capture=[first, last, *points])
    here = {point: value[0, at] for point, value in captured.items()}
    row = logits[0, at].astype(mx.float32)
    require_finite_runs(model, np.array(row)[None], tokens, "attributed")
    target, against = _targets(model, row, answer, foil)
    direction, constant = _direction(model, target, against)
    scaled = direction * architecture.norm_scale(here[last])[0]

    def contribution(written: mx.array) -> Floats:
        return np.array(written.astype(mx.float32) @ scaled, dtype=np.float64)

    # The sum is over what really entered the stream; the split by heads is of the same run's z.
    attn = np.array([contribution(here[HookPoint("attn_out", layer)]) for layer in layers])
    mlp = np.array([contribution(here[HookPoint("mlp_out", layer)]) for layer in layers]) if has_mlp else None
    heads = np.full((model.n_layers, model.n_heads), np.nan)
    for layer in with_heads:
        heads[layer] = contribution(architecture.head_outputs(layer, here[HookPoint("z", layer)])[0])
    embed = float(contribution(here[first]))
    _refuse_not_finite(embed, heads, attn, mlp, with_heads)
    total = embed + float(attn.sum()) + (0.0 if mlp is None else float(mlp.sum())) + constant
    recorder.add_method("direct_logit_attribution")
    return LogitAttributionResult(
        head_contributions=heads,
        attn_contributions=attn,
        mlp_contributions=mlp,
        embed_contribution=embed,
        bias_contribution=constant,
        total=total,
        logit=_logit(np.array(row), target, against, architecture.softcap),
        **_context(
            model, tokens[0], target, against, at, [*_limits(model, np.array(row), answer, with_heads)]
        ),
    )


def _refuse_not_finite(
    embed: float, heads: Floats, attn: Floats, mlp: Floats | None, with_heads: Sequence[int]
) -> None:
    named = [("embed", embed)]
    for layer, written in enumerate(attn):
        named.append((f"L{layer}.attn_out", float(written)))
        if layer in with_heads:
            named += [(f"L{layer}.H{i}", float(x)) for i, x in enumerate(heads[layer])]
        if mlp is not None:
            named.append((f"L{layer}.mlp_out", float(mlp[layer])))
    require_finite(
        [value for _, value in named],
        [name for name, _ in named],
        "contributions to the logit",
        "Look at what is written there with model.trace(text, capture='all').",
    )


def _limits(
    model: InterpretableModel,
    row: NDArray[np.float32],
    answer: str | int | None,
    with_heads: Sequence[int],
) -> Iterator[str]:
    yield from of_form(model, row, answer, "answer")
    if len(with_heads) < model.n_layers:
        yield (
            f"Only layers {', '.join(f'L{layer}' for layer in with_heads)} are split into heads: "
            f"{model.capabilities['head_outputs'].reason} In the others attn_out stands for the whole part."
        )


def direct_logit_neurons(
    model: InterpretableModel,
    text: Prompt,
    *,
    layer: int,
    answer: str | int | None = None,
    foil: str | int | None = None,
    position: int = -1,
    k: int = 20,
) -> NeuronAttributionResult:
    """What each neuron of one layer's MLP adds to the logit of `answer`, or to `answer` over `foil`.

    A neuron is one input of the MLP's last linear layer; it writes its activation times its output weights.
    That is projected as `direct_logit_attribution` does it, so all neurons and the bias add up to that MLP's
    contribution there. A norm between the MLP and the residual stream is frozen too. Costs one forward.

    Args:
        layer: which layer's MLP.
        answer: one token, as text or id; by default the model's first choice.
        foil: if given, contributions are to logit[answer] − logit[foil].
        position: whose next token is predicted; negative ones count from the end.
        k: how many neurons to keep, by magnitude; the others are one sum.

    Raises:
        CapabilityUnavailable: the MLP has no single down projection that can be read (a mixture of experts),
            or its neurons do not add up to mlp_out.

    Source: Elhage et al. 2021; Geva et al. 2021, "Transformer Feed-Forward Layers Are Key-Value Memories".
    """
    require_model(model)
    architecture = model.architecture
    architecture.require("unembedding", "final_norm_formula", "mlp_out")
    if not 0 <= layer < model.n_layers:
        raise UnknownHookPoint(
            f"layer {layer}: this model has {model.n_layers} layers, 0 to {model.n_layers - 1}."
        )
    part = architecture.layers[layer]
    down = _down_projection(model, layer)
    norm = IDENTITY if part.mlp_adds is part.mlp or part.mlp_adds is None else None
    if norm is None and part.mlp_adds is not None:
        norm = read_norm(part.mlp_adds, model.d_model)
    if norm is None:
        raise _no_neurons(model, layer, "the norm behind it has no known formula")
    tokens = token_rows(model, [text], "attributed")
    at = position_index(position, tokens.shape[1])
    inputs: list[mx.array] = []

    def look(call: Any, x: mx.array) -> Any:
        inputs.append(x)
        return call(x)

    written, last = HookPoint("mlp_out", layer), HookPoint("resid_post", model.n_layers - 1)
    with architecture.float32_stream(), tapped([(down, look)]):
        logits, captured = model.run(mx.array(tokens), capture=[written, last])
    if len(inputs) != 1 or inputs[0].shape[:2] != tokens.shape:
        raise _no_neurons(model, layer, "its down projection does not see each token once")
    row = logits[0, at].astype(mx.float32)
    require_finite_runs(model, np.array(row)[None], tokens, "attributed")
    target, against = _targets(model, row, answer, foil)
    direction, _ = _direction(model, target, against)
    scaled = direction * architecture.norm_scale(captured[last][0, at])[0]

    acts = inputs[0][0, at].astype(mx.float32)
    weight, bias = linear.rows(down), linear.bias(down)
    own = weight @ acts if bias is None else weight @ acts + bias
    wrote = captured[written][0, at].astype(mx.float32)
    if not mx.allclose(
        norm(own) * architecture.mlp_scale, wrote, rtol=1e-3, atol=1e-3 * float(mx.max(mx.abs(wrote)))
    ).item():
        raise _no_neurons(model, layer, "its neurons and the bias do not add up to mlp_out")
    before_norm = norm.fold(scaled[None])[0] * norm.scale(own)[0] * architecture.mlp_scale
    each = np.array(acts * (before_norm @ weight), dtype=np.float64)
    constant = 0.0 if bias is None else float(bias @ before_norm)
    constant += 0.0 if norm.bias is None else float(norm.bias @ scaled) * architecture.mlp_scale
    require_finite(
        each,
        lambda i: f"L{layer} neuron {i}",
        "contributions of neurons",
        "Look at what the layer reads with model.trace(text, capture='all').",
    )
    kept = np.argsort(-np.abs(each), kind="stable")[:k]
    recorder.add_method("direct_logit_neurons")
    return NeuronAttributionResult(
        layer=layer,
        neurons=tuple(int(n) for n in kept),
        contributions=each[kept],
        activations=np.array(acts, dtype=np.float64)[kept],
        n_neurons=len(each),
        rest=float(np.delete(each, kept).sum()),
        bias=constant,
        total=float(each.sum()) + constant,
        **_context(model, tokens[0], target, against, at, [*of_form(model, np.array(row), answer, "answer")]),
    )


def _context(
    model: InterpretableModel,
    tokens: Ids,
    target: int,
    foil: int | None,
    position: int,
    cautions: Sequence[str],
) -> dict[str, Any]:
    """The fields of a result that say what was attributed where."""
    shown = tuple(str_tokens(model, tokens))
    return {
        "target_token": target,
        "target_token_str": _shown(model, target),
        "foil_token": foil,
        "foil_token_str": None if foil is None else _shown(model, foil),
        "position": position,
        "tokens": shown,
        "measured_on": facts_of(model)
        | {
            "prompts": [{"text": "".join(shown)}],
            "metric": "logit" if foil is None else "logit_diff",
            "position": position,
            "final_norm": "scale frozen at this run's value",
            "softcap": model.architecture.softcap,
        }
        | ({"cautions": list(cautions)} if cautions else {}),
    }


def _down_projection(model: InterpretableModel, layer: int) -> nn.Module:
    mlp = model.architecture.layers[layer].mlp
    assert mlp is not None, "mlp_out was required"
    for name in DOWN_PROJECTION:
        found = mlp.get(name)
        if isinstance(found, nn.Module) and linear.readable(found):
            return found
    raise _no_neurons(model, layer, f"it has {', '.join(sorted(mlp.children()))} and no down projection")


def _no_neurons(model: InterpretableModel, layer: int, why: str) -> CapabilityUnavailable:
    return CapabilityUnavailable(
        f"{model.name}: what single neurons of layer {layer}'s MLP write is not known: {why}. "
        "Use direct_logit_attribution, which attributes to the whole MLP."
    )


def _targets(
    model: InterpretableModel, row: mx.array, answer: str | int | None, foil: str | int | None
) -> tuple[int, int | None]:
    """The token ids of answer and foil; without an answer the model's first choice."""
    target = int(mx.argmax(row)) if answer is None else token_id(model, answer)
    against = None if foil is None else token_id(model, foil)
    if against == target:
        raise PromptPairError(
            f"answer and foil are the same token, {_shown(model, target)!r}. Choose two, or no foil."
        )
    return target, against


def _direction(model: InterpretableModel, target: int, foil: int | None) -> tuple[mx.array, float]:
    """The direction before the final norm's scale, and the constant that no component writes."""
    ids = [target] if foil is None else [target, foil]
    directions, constants = model.architecture.logit_directions(mx.array(ids))
    fixed = np.array(constants, dtype=np.float64)
    if foil is None:
        return directions[0], float(fixed[0])
    return directions[0] - directions[1], float(fixed[0] - fixed[1])


def _logit(row: NDArray[np.float32], target: int, foil: int | None, softcap: float | None) -> float:
    """The model's own value of the attributed quantity, with the softcap undone."""

    def one(token: int) -> float:
        value = float(row[token])
        return value if softcap is None else softcap * float(np.arctanh(value / softcap))

    return one(target) if foil is None else one(target) - one(foil)


def _shown(model: InterpretableModel, token: int) -> str:
    return str_tokens(model, [token])[0]

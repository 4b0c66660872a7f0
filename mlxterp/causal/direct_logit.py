"""Direct logit attribution: how much each component writes towards a token.

What lives here: projecting what components add to the residual stream on unembedding rows, with the final
norm's scale frozen. What doesn't: indirect effects, through later components (`activation_patching.py`).
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.prompts import Prompt, facts_of, str_tokens, token_id, token_rows
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError, TokenError
from mlxterp.metrics import Floats
from mlxterp.results import LogitAttributionResult


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
        contributions in logits, per head under grouped-query attention too; positive favours `answer`. For a
        model with a logit softcap they are of the logit before the cap (`measured_on["softcap"]`).

    Raises:
        CapabilityUnavailable: the model's final norm or unembedding has no known formula.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". The norm is frozen, not
    linearised: an effect through the norm's scale is not attributed to anyone.
    """
    architecture = model.architecture
    architecture.require("unembedding", "final_norm_formula", "attn_out", "head_outputs")
    has_mlp = architecture.capabilities["mlp_out"].available
    tokens = token_rows(model, [text], "attributed")
    at = _position(position, tokens.shape[1])
    parts = ["z", "attn_out", *(["mlp_out"] if has_mlp else [])]
    layers = range(model.n_layers)
    points = [HookPoint(name, layer) for name in parts for layer in layers]
    first, last = HookPoint("resid_pre", 0), HookPoint("resid_post", model.n_layers - 1)
    logits, seen = model.run(mx.array(tokens), capture=[first, last, *points])
    here = {point: value[0, at] for point, value in seen.items()}
    row = logits[0, at].astype(mx.float32)
    target = int(np.argmax(np.array(row))) if answer is None else token_id(model, answer)
    against = None if foil is None else token_id(model, foil)
    if against == target:
        raise PromptPairError(
            f"answer and foil are the same token, {_shown(model, target)!r}. Choose two, or no foil."
        )

    direction, constant = _direction(model, target, against)
    scaled = direction * architecture.norm_scale(here[last])[0]

    def contribution(written: mx.array) -> Floats:
        return np.array(written.astype(mx.float32) @ scaled, dtype=np.float64)

    # The sum is over what really entered the stream; the split by heads is of the same run's z.
    attn = np.array([contribution(here[HookPoint("attn_out", layer)]) for layer in layers])
    mlp = np.array([contribution(here[HookPoint("mlp_out", layer)]) for layer in layers]) if has_mlp else None
    heads = [
        contribution(architecture.head_outputs(layer, here[HookPoint("z", layer)])[0]) for layer in layers
    ]
    embed = float(contribution(here[first]))
    total = embed + float(attn.sum()) + (0.0 if mlp is None else float(mlp.sum())) + constant
    softcap = architecture.softcap
    return LogitAttributionResult(
        head_contributions=np.stack(heads),
        attn_contributions=attn,
        mlp_contributions=mlp,
        embed_contribution=embed,
        bias_contribution=constant,
        total=total,
        logit=_logit(np.array(row), target, against, softcap),
        target_token=target,
        target_token_str=_shown(model, target),
        foil_token=against,
        foil_token_str=None if against is None else _shown(model, against),
        position=at,
        tokens=tuple(str_tokens(model, tokens[0])),
        measured_on=facts_of(model)
        | {
            "prompts": [{"text": "".join(str_tokens(model, tokens[0]))}],
            "metric": "logit" if against is None else "logit_diff",
            "position": at,
            "final_norm": "scale frozen at this run's value",
            "softcap": softcap,
        },
    )


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


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise TokenError(
            f"position {position} does not exist: the prompt has {length} tokens, positions 0 to "
            f"{length - 1}, or negative from the end."
        )
    return position % length


def _shown(model: InterpretableModel, token: int) -> str:
    return str_tokens(model, [token])[0]

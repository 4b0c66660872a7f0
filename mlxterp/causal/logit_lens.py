"""The logit lens: the next token read from every layer's residual stream.

resid_post of each layer is decoded as if it were the last. `tuned_lens.py` trains translators that stand
before the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.finite import require_finite
from mlxterp.causal.prompts.encoding import (
    Prompt,
    facts_of,
    position_index,
    require_model,
    str_tokens,
    token_id,
    token_rows,
)
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import TokenError
from mlxterp.measurements import recorder
from mlxterp.results import LogitLensResult


@dataclass(frozen=True)
class Lens:
    """How a layer is decoded.

    Attributes:
        translate: translate(layer, resid_post [..., d_model]) is what the final norm reads in its place.
        facts: recorded in the result.
    """

    name: str
    translate: Callable[[int, mx.array], mx.array]
    facts: Mapping[str, Any]


_LOGIT_LENS = Lens(
    "logit lens",
    lambda _, h: h,
    {"read": "resid_post of each layer, the model's final norm and unembedding"},
)


def logit_lens(
    model: InterpretableModel,
    text: Prompt,
    *,
    positions: Sequence[int] | None = None,
    answer: str | int | None = None,
    k: int = 5,
) -> LogitLensResult:
    """What each layer would predict if it were the last: its resid_post through final norm and unembedding.

    The norm's scale is that of the residual stream which is read, so the last layer's are the model's own
    logits (softcap included), exactly. Costs one forward and, per layer, one unembedding of the positions.

    Args:
        positions: whose next token is read; all by default; negative ones count from the end.
        answer: one token, as text or id, whose probability, logit and rank are followed; by default the
            model's own first choice at the last of the positions.
        k: how many of the likeliest tokens to keep at each layer and position.

    Returns:
        probabilities, logits and ranks [n_layers, n_positions]; the k likeliest tokens of each.

    Raises:
        CapabilityUnavailable: the model's unembedding is not known.
        TokenError: a position that does not exist, or a k outside 1 to d_vocab.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens". An early layer's stream need not be
    written in the last one's terms: a low probability here does not say that a layer lacks the answer.
    """
    return read_layers(model, text, _LOGIT_LENS, positions=positions, answer=answer, k=k)


def read_layers(
    model: InterpretableModel,
    text: Prompt,
    lens: Lens,
    *,
    positions: Sequence[int] | None,
    answer: str | int | None,
    k: int,
) -> LogitLensResult:
    """Every layer's stream, translated, through final norm and unembedding; the rest as in `logit_lens`."""
    require_model(model)
    architecture = model.architecture
    architecture.require("unembedding", "resid_post")
    if not 1 <= k <= model.d_vocab:
        raise TokenError(f"k={k}: {model.name} has {model.d_vocab} tokens. Choose 1 to {model.d_vocab}.")
    tokens = token_rows(model, [text], "read")
    length = tokens.shape[1]
    if isinstance(positions, int):
        raise TokenError(f"positions={positions} is one number. Pass a list, as in positions=[{positions}].")
    wanted = range(length) if positions is None else positions
    at = tuple(position_index(position, length) for position in wanted)
    if not at:
        raise TokenError("no positions were given. Give at least one, or None for all.")
    points = [HookPoint("resid_post", layer) for layer in range(model.n_layers)]
    _, captured = model.run(mx.array(tokens), capture=points)

    def decoded(layer: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        h = lens.translate(layer, captured[points[layer]][:, mx.array(at)])
        return np.array(architecture.final(h)[0].astype(mx.float32))

    target = int(decoded(model.n_layers - 1)[-1].argmax()) if answer is None else token_id(model, answer)
    logits, probs, ranks, top_ids, top_probs = [], [], [], [], []
    for layer in range(model.n_layers):
        rows = decoded(layer)
        require_finite(
            rows.T,
            [f"L{layer}.resid_post pos {position}" for position in at],
            "logits read from a layer's residual stream",
            "Load the model with dtype=mx.float32, or look where the stream breaks with model.trace.",
        )
        log_probs = np.stack([metrics.log_softmax(row) for row in rows])
        best = np.argpartition(-log_probs, k - 1, axis=-1)[:, :k]
        order = np.argsort(-np.take_along_axis(log_probs, best, axis=-1), axis=-1, kind="stable")
        best = np.take_along_axis(best, order, axis=-1)
        targets = np.full(len(rows), target)
        logits.append(metrics.logit(rows, targets))
        probs.append(np.exp(log_probs[:, target]))
        ranks.append(metrics.rank(rows, targets))
        top_ids.append(best)
        top_probs.append(np.exp(np.take_along_axis(log_probs, best, axis=-1)))
    named = {int(i): str_tokens(model, [int(i)])[0] for i in np.unique(np.stack(top_ids))}
    prompt = str_tokens(model, tokens[0])
    recorder.add_method("logit_lens")
    return LogitLensResult(
        answer_probs=np.stack(probs),
        answer_logits=np.stack(logits),
        answer_ranks=np.stack(ranks).astype(np.float64),
        top_tokens=tuple(tuple(tuple(named[int(i)] for i in cell) for cell in layer) for layer in top_ids),
        top_probs=np.stack(top_probs),
        answer_token=target,
        answer_token_str=str_tokens(model, [target])[0],
        positions=at,
        tokens=tuple(prompt),
        lens=lens.name,
        measured_on=facts_of(model)
        | {
            "prompts": [{"text": "".join(prompt)}],
            "positions": list(at),
            "softcap": architecture.softcap,
        }
        | dict(lens.facts),
    )

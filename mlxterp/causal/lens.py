"""The logit lens: the next token read from every layer's residual stream.

What lives here: decoding resid_post as if it were the last. What doesn't: what single components write
(`direct_logit.py`), lenses with trained parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.prompts import Prompt, facts_of, position_index, str_tokens, token_id, token_rows
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import TokenError
from mlxterp.results import LogitLensResult


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
    architecture = model.architecture
    architecture.require("unembedding", "resid_post")
    if not 1 <= k <= model.d_vocab:
        raise TokenError(f"k={k}: {model.name} has {model.d_vocab} tokens. Choose 1 to {model.d_vocab}.")
    tokens = token_rows(model, [text], "read")
    length = tokens.shape[1]
    wanted = range(length) if positions is None else positions
    at = tuple(position_index(position, length) for position in wanted)
    if not at:
        raise TokenError("no positions were given. Give at least one, or None for all.")
    points = [HookPoint("resid_post", layer) for layer in range(model.n_layers)]
    _, seen = model.run(mx.array(tokens), capture=points)

    def read(point: HookPoint) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.array(architecture.final(seen[point][:, mx.array(at)])[0].astype(mx.float32))

    target = int(read(points[-1])[-1].argmax()) if answer is None else token_id(model, answer)
    logits, probs, ranks, top_ids, top_probs = [], [], [], [], []
    for point in points:
        rows = read(point)
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
        measured_on=facts_of(model)
        | {
            "prompts": [{"text": "".join(prompt)}],
            "read": "resid_post of each layer, the model's final norm and unembedding",
            "positions": list(at),
            "softcap": architecture.softcap,
        },
    )

"""What limits every number that is measured on some prompts, as sentences for the results.

Lives here: cautions about position 0, the form of an answer, gaps that 16 bits cannot tell from rounding, and
hook points that mean less in this model. Does not live here: what limits one method's estimates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.core.model import InterpretableModel, bos_caution

FAR_MORE_PROBABLE = math.log(10.0)
"""By how much, in nats, the other form of an answer must be likelier to be named."""

ROUNDINGS = 100
"""A gap of fewer roundings of the largest logit than this is small."""

IN_LOGITS = ("logit_diff", "logit", "log_prob", "l2")
"""The metrics whose unit is that of the logits."""


def of_first_position(
    model: InterpretableModel, clean: NDArray[np.int64], corrupted: NDArray[np.int64]
) -> Iterator[str]:
    """One caution if some pair's prompts differ in their first token and no BOS token stands before it."""
    for own, other in zip(clean, corrupted, strict=True):
        if text := bos_caution(model, own.tolist(), other.tolist()):
            yield text
            return


def of_form(
    model: InterpretableModel, logits: NDArray[np.float32], token: str | int | None, name: str
) -> Iterator[str]:
    """A caution if the other form of a token given as text is far likelier at these logits `[d_vocab]`."""
    if not isinstance(token, str):
        return
    other = model.other_form(token)
    if other is None:
        return
    own_id, other_id = model.to_single_token(token), model.to_single_token(other)
    ahead = float(logits[other_id]) - float(logits[own_id])
    if ahead > FAR_MORE_PROBABLE:
        yield (
            f"{name}={token!r}: the token {other!r} is {math.exp(min(ahead, 700.0)):,.0f} times as probable "
            f"there. If that is what should follow, pass {name}={other!r}."
        )


def of_small_gap(
    model: InterpretableModel, metric: str, gap: float, logits: Sequence[NDArray[np.float32]]
) -> Iterator[str]:
    """A caution if a gap in logits is within `ROUNDINGS` roundings of a 16-bit model's largest logit."""
    dtype = model.architecture.dtype
    if dtype == mx.float32 or metric not in IN_LOGITS:
        return
    eps, largest = float(mx.finfo(dtype).eps), max(float(np.abs(each).max()) for each in logits)
    limit = ROUNDINGS * eps * largest
    if abs(gap) < limit:
        yield (
            f"The gap of {gap:.2g} in {metric} is less than {limit:.2g}, {ROUNDINGS} roundings of the "
            f"largest logit ({largest:.3g}) in {str(dtype).rpartition('.')[2]}: run in that type, the model "
            "does not hold so small a difference steadily. All runs here are computed in float32 with its "
            "weights. Confirm on other prompts, or with the weights in float32."
        )


def of_component(model: InterpretableModel, name: str, layers: Sequence[int]) -> Iterator[str]:
    """What limits the meaning of a hook point in this model; and in which layers it is, if these are all."""
    capability = model.capabilities[name]
    if capability.available and capability.reason:
        yield f"{name} in {model.name}: {capability.reason}"
    if capability.layers and tuple(layers) == capability.layers:
        have = ", ".join(f"L{layer}" for layer in capability.layers)
        yield f"Only {have} of {model.n_layers} layers have {name}, and these were swept: {capability.reason}"

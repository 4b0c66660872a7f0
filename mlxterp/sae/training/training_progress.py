"""How a training goes: what is reported, and whether it ended too early.

Lives here: values and a judgement on them. Does not live here: when a report is made (`train.py`), how it
is shown (`__main__.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

STILL_IMPROVING = 0.10


@dataclass(frozen=True)
class TrainingProgress:
    """How a training stands: means over the steps since the last report.

    `fvu` is of the tokens being trained on, before each step; `dead` the share of features that have not
    fired for a while; `eta_seconds` until the end of the run at the present speed.
    """

    name: str
    step: int
    steps: int
    tokens: int
    loss: float
    fvu: float
    l0: float
    dead: float
    learning_rate: float
    tokens_per_second: float
    eta_seconds: float


Progress = Callable[[TrainingProgress], None]


def still_falling(history: Sequence[TrainingProgress], decay: float) -> float | None:
    """By which share the FVU fell between the last two 15 % of the run before the decay, if that is too much.

    Too much is more than a tenth of what it was, or of all that the run had gained: a rate that is far too
    low falls slowly, but as fast at the end as at the beginning.
    """
    if not history or history[-1].step < (1 - decay) * history[-1].steps:
        return None
    steps = history[-1].steps
    end = (1 - decay) * steps
    before = [line.fvu for line in history if end - 0.3 * steps < line.step <= end - 0.15 * steps]
    after = [line.fvu for line in history if end - 0.15 * steps < line.step <= end]
    if not before or not after:
        return None
    start, finish = float(np.mean(before)), float(np.mean(after))
    fell, gained = start - finish, history[0].fvu - finish
    return fell / start if fell > STILL_IMPROVING * max(0.0, min(start, gained)) else None

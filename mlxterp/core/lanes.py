"""Parts of one computation side by side on a CPU: each on a stream of its own, with one BLAS thread.

MLX computes a stream's operations one after the other, and only products use several threads. Of a forward on
2 cores, softmax, SwiGLU, norms and copies leave one of them idle. Rows of a batch don't depend on each other,
so parts of it on several streams keep every core busy to the end
(docs/decisions/0023-parts-of-a-batch-side-by-side.md). What lives here: which streams there are, and running
on them. What doesn't: how a batch is cut (the callers), the BLAS (`blas.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from mlxterp.core import blas, cores

PART_TOKENS = 1024
"""Tokens of a part: enough for products to run at full speed."""

_Built = TypeVar("_Built")
_Row = TypeVar("_Row")
_own = threading.local()  # MLX's streams belong to the thread that made them


def side_by_side(parts: Sequence[Callable[[], _Built]]) -> list[_Built]:
    """What each part gives (arrays, or containers of arrays), computed.

    As many at once as there are idle cores; one after the other on a GPU, and where the number of BLAS
    threads is not ours to choose (`OPENBLAS_NUM_THREADS` is set, or MLX computes with another library).
    Several parts are computed with one thread each however many run at once, so that this changes the time
    they take and nothing else.
    """
    if len(parts) < 2 or mx.default_device() != mx.Device(mx.cpu) or not blas.threads_are_ours():
        built = [part() for part in parts]
        mx.eval(built)
        return built
    with blas.one_thread():
        streams = _streams(min(len(parts), cores.idle()))
        built = []
        for i, part in enumerate(parts):
            with mx.stream(streams[i % len(streams)]):
                built.append(part())
        mx.eval(built)
    return built


def cut(rows: Sequence[_Row], tokens: int) -> list[Sequence[_Row]]:
    """Neighbouring rows in equal parts of about PART_TOKENS, given how many tokens they have together.

    The same on every machine: how a batch is cut may show in the last bits of what it gives.
    """
    n = max(1, min(len(rows), tokens // PART_TOKENS))
    ends = [len(rows) * i // n for i in range(n + 1)]
    return [rows[ends[i] : ends[i + 1]] for i in range(n)]


def _streams(n: int) -> list[mx.Stream]:
    """The default stream and others of this thread, made when first asked for."""
    more: list[mx.Stream] = _own.__dict__.setdefault("streams", [])
    while len(more) < n - 1:
        more.append(mx.new_stream(mx.cpu))
    return [mx.default_stream(mx.cpu), *more[: n - 1]]

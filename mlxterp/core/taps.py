"""Calls wrapped around module calls, for the time of a `with` block.

A tapped module's class becomes a subclass whose `__call__` asks the tap; the module tree, the parameters and
`isinstance` stay as they are, quantised layers and modules kept in lists included. Undoing is one assignment,
done in `finally`. A tap sees the calls of the thread that set it. The attention function of a family is one
name for all threads, so a model is run by one thread at a time: `run_lock`. Lives here: the mechanism, for
any `mlx.nn.Module`. Does not live here: which modules are tapped (`forward.py`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn

from mlxterp.errors import HookError

# around(call, *args, **kwargs): `call` is the module's own call; what around returns is what the caller gets.
Around = Callable[..., Any]

_SLOT = "_mlxterp_around"
_THREAD = "_mlxterp_thread"
_INSIDE = "_mlxterp_inside"
_TAPPED: dict[type, type] = {}


_CALLED_INSIDE = (
    "The model was called from inside one of its own runs, by an edit function. Compute what the edit needs "
    "before the run."
)
_THREADS = threading.RLock()
_RUNNING: list[RunLock] = []  # the runs of the thread that holds _THREADS, the innermost last


@contextmanager
def other_runs_waiting() -> Iterator[None]:
    """While the block runs, other threads' runs wait."""
    with _THREADS:
        yield


class RunLock:
    """Lets one run at a time use a model: another thread waits, a run inside a run of its own is refused.

    One lock serves the whole process, because families share the name under which their modules find the
    attention function. A run only builds its graph while it holds the lock; evaluation is not held up.
    """

    @property
    def innermost(self) -> bool:
        """Whether the model that runs right now is this one, and not another that an edit function calls."""
        return bool(_RUNNING) and _RUNNING[-1] is self

    @contextmanager
    def run(self) -> Iterator[None]:
        """One whole run.

        Raises:
            HookError: this thread is inside a run of the same model already, in an edit function.
        """
        with _THREADS:
            if self in _RUNNING:
                raise HookError(_CALLED_INSIDE)
            _RUNNING.append(self)
            try:
                yield
            finally:
                _RUNNING.pop()

    @contextmanager
    def part_of_run(self) -> Iterator[None]:
        """A forward that may be a part of this thread's run; by itself, a run."""
        with _THREADS:
            if self.innermost:
                yield
            else:
                with self.run():
                    yield


_LOCKS: dict[int, RunLock] = {}


def run_lock(model: nn.Module) -> RunLock:
    """The lock of a model: one for all that hold the same module."""
    with _THREADS:
        if id(model) not in _LOCKS:  # modules are dicts, so they cannot be keys themselves
            _LOCKS[id(model)] = RunLock()
            weakref.finalize(model, _LOCKS.pop, id(model), None)
        return _LOCKS[id(model)]


def _tapped_class(original: type) -> type:
    """The subclass of `original` that asks its instance's tap; made once per class."""
    if original not in _TAPPED:

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def own_call(*inner: Any, **named: Any) -> Any:
                return original.__call__(self, *inner, **named)

            own = self.__dict__
            if own.get(_THREAD) != threading.get_ident():
                return own_call(*args, **kwargs)
            if own.get(_INSIDE):
                raise HookError(_CALLED_INSIDE)
            own[_INSIDE] = True
            try:
                return own[_SLOT](own_call, *args, **kwargs)
            finally:
                own.pop(_INSIDE, None)

        # Special methods are looked up on the type, so an instance attribute `__call__` would never be asked.
        body = {"__call__": call, "__module__": original.__module__, "__qualname__": original.__qualname__}
        _TAPPED[original] = type(original.__name__, (original,), body)
    return _TAPPED[original]


@contextmanager
def tapped(taps: Sequence[tuple[nn.Module, Around]]) -> Iterator[None]:
    """Wraps each module's call while the block runs; afterwards every module is what it was, whatever
    happened.

    Of two taps on one module, the later one in `taps` is the outer one. Other threads' runs wait meanwhile.
    """
    undo: list[tuple[nn.Module, type, Around | None]] = []
    with _THREADS:
        try:
            for module, around in taps:
                original, inner = type(module), module.__dict__.get(_SLOT)
                undo.append((module, original, inner))
                object.__setattr__(module, _SLOT, around if inner is None else _composed(inner, around))
                if inner is None:
                    object.__setattr__(module, _THREAD, threading.get_ident())
                    module.__class__ = _tapped_class(original)
            yield
        finally:
            for module, original, inner in reversed(undo):
                module.__class__ = original
                if inner is None:
                    module.__dict__.pop(_SLOT, None)
                    module.__dict__.pop(_THREAD, None)
                else:
                    object.__setattr__(module, _SLOT, inner)


def _composed(inner: Around, outer: Around) -> Around:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return outer(lambda *a, **k: inner(call, *a, **k), *args, **kwargs)

    return around


@contextmanager
def renamed(name: str, replacements: Sequence[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    """While the block runs, `name` means something else in each of these namespaces."""
    with _THREADS:
        before = [(namespace, namespace[name]) for namespace, _ in replacements]
        try:
            for namespace, replacement in replacements:
                namespace[name] = replacement
            yield
        finally:
            for namespace, value in before:
                namespace[name] = value

"""Calls wrapped around module calls, for the time of a `with` block.

A tapped module's class becomes a subclass whose `__call__` asks the tap; the module tree, the parameters and
`isinstance` stay as they are, quantised layers and modules kept in lists included. Undoing is one assignment,
done in `finally`. What lives here: the mechanism, for any `mlx.nn.Module`. What doesn't: which modules matter
(`forward.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn

# around(call, *args, **kwargs): `call` is the module's own call; what around returns is what the caller gets.
Around = Callable[..., Any]

_SLOT = "_mlxterp_around"
_TAPPED: dict[type, type] = {}


def _tapped_class(original: type) -> type:
    """The subclass of `original` that asks its instance's tap; made once per class."""
    if original not in _TAPPED:

        def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            def own_call(*inner: Any, **named: Any) -> Any:
                return original.__call__(self, *inner, **named)

            return self.__dict__[_SLOT](own_call, *args, **kwargs)

        # Special methods are looked up on the type, so an instance attribute `__call__` would never be asked.
        body = {"__call__": call, "__module__": original.__module__, "__qualname__": original.__qualname__}
        _TAPPED[original] = type(original.__name__, (original,), body)
    return _TAPPED[original]


@contextmanager
def tapped(taps: Sequence[tuple[nn.Module, Around]]) -> Iterator[None]:
    """Wraps each module's call while the block runs; afterwards every module is what it was, whatever
    happened.

    Of two taps on one module, the later one in `taps` is the outer one.
    """
    undo: list[tuple[nn.Module, type, Around | None]] = []
    try:
        for module, around in taps:
            original, inner = type(module), module.__dict__.get(_SLOT)
            undo.append((module, original, inner))
            object.__setattr__(module, _SLOT, around if inner is None else _composed(inner, around))
            if inner is None:
                module.__class__ = _tapped_class(original)
        yield
    finally:
        for module, original, inner in reversed(undo):
            module.__class__ = original
            if inner is None:
                module.__dict__.pop(_SLOT, None)
            else:
                object.__setattr__(module, _SLOT, inner)


def _composed(inner: Around, outer: Around) -> Around:
    def around(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return outer(lambda *a, **k: inner(call, *a, **k), *args, **kwargs)

    return around


@contextmanager
def renamed(name: str, replacements: Sequence[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    """While the block runs, `name` means something else in each of these namespaces."""
    before = [(namespace, namespace[name]) for namespace, _ in replacements]
    try:
        for namespace, replacement in replacements:
            namespace[name] = replacement
        yield
    finally:
        for namespace, value in before:
            namespace[name] = value

"""What the library has measured in this process: counted where a model runs, read when an entry is logged.

Lives here: the counts, and the one recorder that the library's functions report to. Standard library only, so
the contract and the supervisor read it too. Does not live here: deciding what a measurement is worth.

Runs of a model through the library are seen (`trace`, `run`, `logits`, `generate`, and every method that is
built on them), with the hook points where they were edited. Calling a model's own module is not seen. It is
kept for an honest experiment's record: code in the same process can report what it likes.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

LISTED = 64
"""Most hook points, methods or models that are listed by name in a record."""


class Digested(Protocol):
    """A model: what a digest tells from others."""

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What was measured in a stretch of time.

    Attributes:
        models: digests of the models that ran.
        forwards: how many batches they ran.
        prompts: how many rows these had.
        tokens: sha256 of the token ids of all prompts, in the order in which they ran; "" if none did.
        hook_points: where interventions were made, with how often.
        never_fired: hook points at which an intervention was asked for and none was ever made.
        changed: hook points at which an intervention was compared with the activation that it replaced, and
            differed from it.
        unchanged: where all that were compared left the activation as it was.
        methods: the library's analyses that ended, with how often.
        pairs: the most pairs (or examples) that one of them had; None where no method said.
    """

    models: tuple[str, ...] = ()
    forwards: int = 0
    prompts: int = 0
    tokens: str = ""
    hook_points: Mapping[str, int] = field(default_factory=dict)
    never_fired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    methods: Mapping[str, int] = field(default_factory=dict)
    pairs: int | None = None

    @property
    def measured(self) -> bool:
        """Whether a model ran, or an analysis read activations that were kept."""
        return self.forwards > 0 or bool(self.methods)

    @property
    def hook_fired(self) -> bool | None:
        """Whether every intervention that was asked for was made; None if none was asked for."""
        if not self.hook_points and not self.never_fired:
            return None
        return not self.never_fired

    @property
    def activation_changed(self) -> bool | None:
        """False if no intervention changed anything; None if none was made, or not all were compared."""
        if self.changed:
            return True
        compared = bool(self.unchanged) and set(self.hook_points) <= set(self.unchanged)
        return False if compared else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, at most `LISTED` names in each list."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: dict(list(value.items())[:LISTED])
            if isinstance(value, Mapping)
            else list(value)[:LISTED]
            if isinstance(value, tuple)
            else value
            for name, value in values.items()
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Measurements:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a field that is unknown or of another type.
        """
        unknown = sorted(set(data) - {each.name for each in fields(Measurements)})
        if unknown:
            raise ValueError(f"there is no field {unknown[0][:40]!r}")
        values = {name: _checked(name, value) for name, value in data.items()}
        return Measurements(**values)


_TEXTS = ("models", "never_fired", "changed", "unchanged")
_COUNTS = ("hook_points", "methods")
_MAX_NAME = 200


def _checked(name: str, value: Any) -> Any:
    if name in _TEXTS:
        fits = isinstance(value, (list, tuple)) and len(value) <= LISTED and all(map(_is_name, value))
    elif name in _COUNTS:
        fits = isinstance(value, Mapping) and len(value) <= LISTED
        fits = fits and all(_is_name(key) and _is_count(n) for key, n in value.items())
    elif name == "tokens":
        fits = _is_name(value)
    else:
        fits = _is_count(value) or (name == "pairs" and value is None)
    if not fits:
        raise ValueError(f"{name} is {str(value)[:60]!r}")
    return tuple(value) if name in _TEXTS else value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tell_nobody(_: Sequence[int]) -> None:
    """Nothing is watched."""


class Recorder:
    """Counts what is measured until it is taken. Its methods may be called from any thread; what it holds
    does not grow with how much is measured."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[bytes, int] = {}
        self._tell: Callable[[Sequence[int]], None] = _tell_nobody
        self._clear()

    def _clear(self) -> None:
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._forwards = self._prompts = 0
        self._tokens = hashlib.sha256()
        self._fired: Counter[str] = Counter()
        self._silent: set[str] = set()
        self._changes: dict[str, bool] = {}
        self._methods: Counter[str] = Counter()
        self._pairs: int | None = None

    def watch(self, prompts: Mapping[bytes, int], tell: Callable[[Sequence[int]], None]) -> None:
        """From now on says when a model runs one of these prompts.

        Args:
            prompts: the token ids of each as int32, with a number of its own.
            tell: gets the numbers of prompts that ran, each once.
        """
        with self._lock:
            self._watched, self._tell = dict(prompts), tell

    def add_forward(self, model: Digested, rows: Sequence[bytes], *, prompts: int | None = None) -> None:
        """A model ran a batch: the token ids of its rows as int32, and how many rows it had in all if some
        are not listed because they repeat one that is."""
        with self._lock:
            self._models.add(model)
            self._forwards += 1
            self._prompts += len(rows) if prompts is None else prompts
            for row in rows:
                self._tokens.update(row)
            seen = {row: self._watched.pop(row) for row in set(rows) & self._watched.keys()}
        if seen:
            self._tell(sorted(seen.values()))

    def add_interventions(self, fired: Iterable[str], never_fired: Iterable[str] = ()) -> None:
        """A run ended: the hook points of the interventions that were made in it (with how often, if it is a
        mapping), and of those that were not."""
        with self._lock:
            self._fired.update(fired)
            self._silent.update(never_fired)

    def needs_comparison(self, hook_point: str) -> bool:
        """Whether no change is known at this hook point yet: comparing further ones tells nothing new."""
        return self._changes.get(hook_point) is not True

    def add_comparison(self, hook_point: str, *, changed: bool) -> None:
        """Whether an intervention made another activation of the one it found."""
        with self._lock:
            self._changes[hook_point] = changed or self._changes.get(hook_point, False)

    def add_method(self, name: str, *, pairs: int | None = None) -> None:
        """An analysis has its result: its function's name, and how many pairs or examples it had."""
        with self._lock:
            self._methods[name] += 1
            if pairs is not None:
                self._pairs = max(self._pairs or 0, pairs)

    def take(self) -> Measurements:
        """What was measured since this was last called."""
        with self._lock:
            models = tuple(sorted(str(model.digest) for model in self._models))
            found = Measurements(
                models=models,
                forwards=self._forwards,
                prompts=self._prompts,
                tokens=self._tokens.hexdigest() if self._forwards else "",
                hook_points=dict(sorted(self._fired.items())),
                never_fired=tuple(sorted(self._silent - set(self._fired))),
                changed=tuple(sorted(name for name, changed in self._changes.items() if changed)),
                unchanged=tuple(sorted(name for name, changed in self._changes.items() if not changed)),
                methods=dict(sorted(self._methods.items())),
                pairs=self._pairs,
            )
            self._clear()
        return found


recorder = Recorder()
"""Of this process: the library's functions report to it, and `ExperimentLog.append` takes what it holds."""

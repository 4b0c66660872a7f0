"""The decisions of an ACDC search in a file, from which the same search goes on.

What lives here: the file, and refusing one of another search. What doesn't: the decisions (`acdc_search.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from mlxterp.causal.circuits.acdc_search import Search
from mlxterp.errors import SweepError

SAVE_EVERY = 10.0
"""Seconds between two writes of the checkpoint."""


class Checkpoint:
    """The decisions of a search in a JSON file, replaced as a whole."""

    def __init__(self, path: Path, search: Search) -> None:
        self._path, self._search, self._written = path, search, time.monotonic()

    def _settings(self) -> dict[str, Any]:
        search, prepared = self._search, self._search.prepared
        tokens = hashlib.sha256(prepared.clean.tobytes() + prepared.corrupted.tobytes())
        if prepared.targets.answers is not None:
            tokens.update(prepared.targets.answers.tobytes())
        if prepared.targets.foils is not None:
            tokens.update(prepared.targets.foils.tobytes())
        return {
            "schema": "mlxterp-acdc/1",
            "model": search.run.model.digest,
            "prompts": tokens.hexdigest(),
            "metric": prepared.metric.name,
            "threshold": repr(search.threshold),
            "n_edges": len(search.edges),
            "searched": hashlib.sha256(search.searched.tobytes()).hexdigest(),
            "alignment": repr(prepared.alignment.stated),
            "ablation": search.run.ablation,
        }

    def read(self) -> None:
        """Takes up the decisions in the file, if there is one."""
        if not self._path.exists():
            return
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise SweepError(
                f"{self._path} is no checkpoint of acdc: {problem}. Name another file."
            ) from problem
        mine = self._settings()
        other = {k: data.get(k) for k in mine} if isinstance(data, dict) else {}
        if other != mine:
            differing = ", ".join(k for k in mine if other.get(k) != mine[k])
            raise SweepError(
                f"{self._path} holds another search: it differs in {differing}. Remove it, or name another "
                "file."
            )
        search = self._search
        search.effects = {int(edge): float(effect) for edge, effect in data["kept"].items()}
        search.position, search.tested, search.loss = data["position"], data["tested"], float(data["loss"])
        for edge in search.order[: search.position].tolist():
            if edge not in search.effects:
                search.remove(edge)

    def write_now_and_then(self) -> None:
        """Writes them if the last time is some seconds ago."""
        if time.monotonic() - self._written >= SAVE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the decisions made so far."""
        search = self._search
        data = self._settings() | {
            "position": search.position,
            "tested": search.tested,
            "loss": repr(search.loss),
            "kept": {str(edge): repr(effect) for edge, effect in search.effects.items()},
        }
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        beside.write_text(json.dumps(data), encoding="utf-8")
        beside.replace(self._path)
        self._written = time.monotonic()

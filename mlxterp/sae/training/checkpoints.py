"""Checkpoints of a training: everything the next step reads, to the bit, in two files that are replaced
together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlxterp._files import replace_directory
from mlxterp.errors import SAEError
from mlxterp.sae.config import SAEConfig
from mlxterp.sae.training.source import Cursor
from mlxterp.sae.training.step import State

ARRAYS, FACTS = "state.safetensors", "state.json"
_CURRENT, _NEXT, _OLD = "current", "next", "old"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of each SAE of a training, and how far the source was read."""

    states: Sequence[State]
    rates: Sequence[float]
    histories: Sequence[Sequence[Mapping[str, Any]]]
    cursor: Cursor


def write(folder: Path, configs: Sequence[SAEConfig], digest: str, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint in `folder`; a crash leaves the old one or the new one.

    Args:
        configs, digest: of the training and of its source, which `read` compares.
    """
    arrays: dict[str, mx.array] = {}
    scalars = []
    for i, state in enumerate(checkpoint.states):
        found: Any = tree_flatten({"params": state.params, "moments": state.moments})
        arrays |= {f"{i}.{path}": value for path, value in found}
        arrays |= {f"{i}.since": state.since, f"{i}.threshold": state.threshold}
        if state.dead.size:
            arrays[f"{i}.dead"] = state.dead
        scalars.append(
            {
                "step": state.step,
                "sparsity": state.sparsity.hex(),
                "threshold_weight": state.threshold_weight.hex(),
            }
        )
    cursor = checkpoint.cursor
    arrays |= {f"rest.{point}": mx.array(rows) for point, rows in cursor.rest.items()}
    facts = {
        "configs": [config.to_dict() for config in configs],
        "source": digest,
        "scalars": scalars,
        "rates": [rate.hex() for rate in checkpoint.rates],
        "histories": [[dict(line) for line in history] for history in checkpoint.histories],
        "cursor": {"epoch": cursor.epoch, "block": cursor.block, "offset": cursor.offset},
    }
    ready = folder / _NEXT
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir(parents=True)
    mx.save_safetensors(str(ready / ARRAYS), arrays)
    (ready / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    replace_directory(folder / _CURRENT, ready)
    shutil.rmtree(folder / _OLD, ignore_errors=True)


def read(folder: Path, configs: Sequence[SAEConfig], digest: str) -> Checkpoint | None:
    """The checkpoint in `folder`, or None if there is none.

    Raises:
        SAEError: it is of another training.
    """
    # Versions before 0.2 renamed twice: a crash between the two left only "old".
    where = next((folder / n for n in (_CURRENT, _OLD) if (folder / n / FACTS).is_file()), None)
    if where is None:
        return None
    facts = json.loads((where / FACTS).read_text(encoding="utf-8"))
    given = json.loads(json.dumps([config.to_dict() for config in configs]))
    if facts["configs"] != given or facts["source"] != digest:
        differs = [
            f"{name}: {before[name]!r} then, {now[name]!r} now"
            for before, now in zip(facts["configs"], given, strict=False)
            for name in now
            if before.get(name) != now[name]
        ]
        if facts["source"] != digest:
            differs.append("other activations")
        raise SAEError(
            f"{folder} holds a checkpoint of another training ({'; '.join(differs) or 'other SAEs'}). Name "
            "another directory, or delete it to begin anew."
        )
    loaded: Any = mx.load(str(where / ARRAYS))
    mx.eval(loaded)  # before the file may be replaced
    rest = {name[len("rest.") :]: np.array(a) for name, a in loaded.items() if name.startswith("rest.")}
    return Checkpoint(
        [_state(i, loaded, scalars) for i, scalars in enumerate(facts["scalars"])],
        [float.fromhex(rate) for rate in facts["rates"]],
        facts["histories"],
        Cursor(rest=rest, **facts["cursor"]),
    )


def _state(i: int, loaded: Mapping[str, mx.array], scalars: Mapping[str, Any]) -> State:
    own = {name[len(f"{i}.") :]: value for name, value in loaded.items() if name.startswith(f"{i}.")}
    trees: Any = tree_unflatten([(n, v) for n, v in own.items() if n.startswith(("params.", "moments."))])
    return State(
        params=trees["params"],
        moments=trees["moments"],
        since=own["since"],
        dead=own.get("dead", mx.zeros((0,), dtype=mx.int32)),
        threshold=own["threshold"],
        threshold_weight=float.fromhex(scalars["threshold_weight"]),
        sparsity=float.fromhex(scalars["sparsity"]),
        step=scalars["step"],
    )

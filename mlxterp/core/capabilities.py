"""What a model can be asked: `python -m mlxterp.core.capabilities NAME` prints which hook points and parts it
has.

Lives here: the table and the program that prints it. Does not live here: the check itself, which every load
makes (`mlxterp.core.self_check`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError

CANNOT_BE_USED = 3
"""The exit code for a model that cannot be loaded, as the command `autointerp` gives it."""


@dataclass(frozen=True)
class CapabilityRow:
    """One hook point or part of a model.

    Whether it can be used in every layer, else why not and in which; with a reason although it is available,
    what limits its meaning.
    """

    name: str
    available: bool
    reason: str = ""
    layers: tuple[int, ...] = ()


def capability_table(model: InterpretableModel) -> tuple[CapabilityRow, ...]:
    """Every hook point and part that this library knows, as the check at load found them in this model."""
    return tuple(
        CapabilityRow(name, capability.available, capability.reason, capability.layers)
        for name, capability in model.capabilities.items()
    )


def text_of(model: InterpretableModel) -> str:
    """The model in one line, and a line for each row of its table."""
    rows = capability_table(model)
    width = max(len(row.name) for row in rows)
    has = sum(row.available for row in rows)
    lines = [
        f"{model.name}: {model.architecture.name}, {model.n_layers} layers, d_model {model.d_model}, "
        f"{model.d_vocab:,} tokens; {has} of {len(rows)} available"
    ]
    for row in rows:
        verdict = "yes" if row.available else "part" if row.layers else "no"
        only = f" (only L{', L'.join(map(str, row.layers))})" if row.layers else ""
        lines.append(f"  {row.name:<{width}}  {verdict:<4} {row.reason}{only}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Loads a model by its name and prints its table; 3 if it cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m mlxterp.core.capabilities", description="What a model can be asked."
    )
    parser.add_argument("name", help="a bundled model, a GGUF file, a directory or hub id for mlx-lm")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    asked = parser.parse_args(arguments)
    try:
        model = InterpretableModel(asked.name)
    except MlxterpError as problem:
        sys.stderr.write(f"{type(problem).__name__}: {problem}\n")
        return CANNOT_BE_USED
    if asked.json:
        text = "\n".join(json.dumps(asdict(row)) for row in capability_table(model))
    else:
        text = text_of(model)
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of mlx-lm's architectures in docs/reference/families.md.

`python -m tests.families_table` writes it.

Each is built small with random weights (`small_models.py`), and what its capabilities say is available is
tested: a hooked run is the plain run bit by bit, each block begins with what the one before ends with, and
patching the last resid_post, and the first resid_pre, recovers a run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxterp.component_names import GLOBAL_NAMES, LAYER_NAMES
from mlxterp.core.interventions import replace
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError
from tests.small_models import architectures, small_module

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "families.md"
BEGIN, END = "<!-- families -->", "<!-- end of families -->"
CLEAN, CORRUPTED = [3, 50, 7, 90, 21, 64, 8, 33], [3, 50, 7, 91, 21, 64, 8, 33]
NAMES = (*LAYER_NAMES, *GLOBAL_NAMES)
ABBREVIATED = 90


class Row(NamedTuple):
    """One architecture: what the table says, and which identity does not hold although it is said to."""

    name: str
    verdict: str
    why: str
    wrong: tuple[str, ...] = ()


def row_of(name: str) -> Row:
    """Builds an architecture small, loads it and tests what it says it has."""
    module = small_module(name)
    if isinstance(module, str):
        return Row(name, "not built", _short(module))
    try:
        model = InterpretableModel(module)
    except MlxterpError as problem:
        return Row(name, "refused", _short(str(problem).split(": ", 1)[-1]))
    except Exception as problem:  # noqa: BLE001 - it is a row of the table: the check at load has to know it
        return Row(name, "refused", "", (f"loading it raises {type(problem).__name__}: {problem}",))
    why = "; ".join(_limits(model))
    try:
        wrong = tuple(broken_identities(model))
    except Exception as problem:  # noqa: BLE001 - as above
        wrong = (f"a run raises {type(problem).__name__}: {problem}",)
    return Row(name, "partly" if why else "works", why, wrong)


def all_rows() -> list[Row]:
    """Every architecture's row, from other processes: guessed sizes can make a model end its process."""
    names = architectures()
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(_rows_of_other_processes, (names[::2], names[1::2]))
        return sorted((row for half in halves for row in half), key=lambda row: names.index(row.name))


def _rows_of_other_processes(names: Sequence[str]) -> list[Row]:
    """One process for all; a fresh one goes on where it ends. What ends a fresh one at once is not built."""
    rows: list[Row] = []
    while len(rows) < len(names):
        command = [sys.executable, "-m", "tests.families_table", *names[len(rows) :]]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PAGE.parents[2], check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        rows += [Row(name, verdict, why, tuple(wrong)) for name, verdict, why, wrong in lines]
        if not lines:
            rows.append(Row(names[len(rows)], "not built", "building it at these sizes ends its process"))
    return rows


def broken_identities(model: InterpretableModel) -> Iterator[str]:
    """Which identities do not hold of hook points that the model is said to have without a limit."""
    clean = model.trace(CLEAN, capture="all")
    if not mx.array_equal(clean.logits, model.logits(CLEAN)):
        yield "a hooked run is not the plain run"
    whole = all(model.capabilities[name].available for name in ("resid_pre", "resid_post"))
    for layer in range(1, model.n_layers if whole else 0):
        if not mx.array_equal(clean[f"L{layer}.resid_pre"], clean[f"L{layer - 1}.resid_post"]):
            yield f"L{layer}.resid_pre is not L{layer - 1}.resid_post"
    for point in ("L0.resid_pre", f"L{model.n_layers - 1}.resid_post"):
        capability = model.capabilities[point.split(".")[1]]
        limited = point.startswith("L0.") and capability.reason
        if capability.available and not limited:
            share = recovered(model, point, clean[point])
            if not abs(share - 1) <= 1e-3:
                yield f"{point} recovers {share:.4f}"


def recovered(model: InterpretableModel, point: str, value: mx.array) -> float:
    """The share of the change of the last position's logits that patching all of `point` undoes."""
    before, after = (model.logits(tokens)[0, -1] for tokens in (CLEAN, CORRUPTED))
    patched = model.logits(CORRUPTED, interventions=[replace(point, value)])[0, -1]
    gap = np.array(before - after, dtype=np.float64)
    return float(np.array(patched - after, dtype=np.float64) @ gap / (gap @ gap))


def _limits(model: InterpretableModel) -> Iterator[str]:
    """What is limited, by its reason; hook points and parts with one reason stand together."""
    reasons: dict[tuple[bool, tuple[int, ...], str], list[str]] = {}
    for name, capability in model.capabilities.items():
        if capability.reason:
            key = (capability.available, capability.layers, _short(capability.reason))
            reasons.setdefault(key, []).append(name)
    for (available, layers, reason), names in reasons.items():
        only = f" in {', '.join(f'L{layer}' for layer in layers)} only" if layers else ""
        yield f"{'' if available or layers else 'no '}{', '.join(names)}{only}: {reason}"


def _short(text: str) -> str:
    # Figures of rounding differ among machines.
    text = text.split(" (relative difference")[0].split(". ")[0].replace("|", "/").rstrip(".")
    return text if len(text) <= ABBREVIATED else text[: text.rfind(" ", 0, ABBREVIATED)] + " …"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, with how many there are of each verdict."""
    verdicts = ("works", "partly", "refused", "not built")
    counts = ", ".join(f"{sum(row.verdict == v for row in rows)} {v}" for v in verdicts)
    wrong = sum(bool(row.wrong) for row in rows)
    lines = [f"{len(rows)} architectures: {counts}; {wrong} silently wrong.", ""]
    lines += ["| mlx-lm module | verdict | what is limited, and why |", "| --- | --- | --- |"]
    for row in rows:
        said = "; ".join(f"**wrong: {each}**" for each in row.wrong)
        lines.append(f"| `{row.name}` | {row.verdict} | {'; '.join(filter(None, (said, row.why)))} |")
    return "\n".join(lines)


def page(rows: Sequence[Row]) -> str:
    """The page with its table written anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}"


def main(names: Sequence[str]) -> int:
    """Writes the page; with a name, prints its row as JSON."""
    if names:
        for name in names:
            sys.stdout.write(json.dumps(row_of(name)) + "\n")
            sys.stdout.flush()
        return 0
    rows = all_rows()
    PAGE.write_text(page(rows), encoding="utf-8")
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

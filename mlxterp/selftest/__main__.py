"""`python -m mlxterp.selftest [--quick] [--seed N]`: the process that `autointerp selftest` starts.

Writes JSON lines to standard output: `{"progress": [what, done, total]}` and at the end `{"result": {…}}`.
`--power` writes the table of `power.py` instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from mlxterp.core.linux_blas import blas
from mlxterp.selftest.power import power_table
from mlxterp.selftest.sections import FULL, QUICK, run_selftest


def main() -> int:
    """Runs the selftest; the exit code is 0 whatever it finds."""
    arguments = argparse.ArgumentParser(prog="python -m mlxterp.selftest")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--power", action="store_true")
    asked = arguments.parse_args()
    out = os.dup(1)
    os.dup2(2, 1)  # the lines are alone on standard output, whatever prints to it meanwhile
    with os.fdopen(out, "w", encoding="ascii") as stream:

        def write(line: dict[str, Any]) -> None:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
            stream.flush()

        def progress(what: str, done: int, total: int) -> None:
            write({"progress": [what, done, total]})

        with blas.pinned_threads():
            if asked.power:
                write({"power": power_table(asked.seed, progress)})
            else:
                size = QUICK if asked.quick else FULL
                write({"result": run_selftest(asked.seed, size, progress=progress).to_dict()})
    return 0


if __name__ == "__main__":
    sys.exit(main())

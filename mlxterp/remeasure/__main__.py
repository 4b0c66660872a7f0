"""`python -m mlxterp.remeasure`: one job from standard input, one result to standard output (`job.py`).

Exit code 0 with numbers, 1 with an error object. What setup.py or a library prints goes to standard error.
The directory it is started in is taken off the path, so that setup.py finds installed packages only; start
it with `-I` where that directory is not trusted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

from mlxterp.remeasure.job import SCHEMA, JobError, read_job, run_job


def main() -> int:
    """Reads, measures, writes; the exit code."""
    sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]
    out = os.dup(1)
    os.dup2(2, 1)  # the result is alone on standard output, whatever prints to it meanwhile
    try:
        result, code = run_job(read_job(sys.stdin.read())), 0
    except JobError as problem:
        traceback.print_exc()
        result, code = {"schema": SCHEMA, "error": {"kind": problem.kind, "message": str(problem)}}, 1
    with os.fdopen(out, "w", encoding="ascii") as stream:
        json.dump(result, stream, ensure_ascii=True, allow_nan=False)
        stream.write("\n")
    return code


if __name__ == "__main__":
    sys.exit(main())

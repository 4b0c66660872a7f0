"""`python -m mlxterp.remeasure`: jobs from standard input, to each its result on standard output (`job.py`).

A job is a line, and so is a result. The first job's setup.py is imported, and the jobs that follow are
measured with it until the input ends or a job fails: exit code 0 after numbers, 1 after an error object. What
setup.py or a library prints goes to standard error, and whoever reads standard input there finds it empty.
The directory it is started in is taken off the path, so that setup.py finds installed packages only; start it
with `-I` where that directory is not trusted.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback

from mlxterp.remeasure.job import SCHEMA, Instrument, JobError, import_instrument, read_job, run_job


def main() -> int:
    """Reads, measures and writes until there is no job any more; the exit code."""
    sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]
    out = os.dup(1)
    os.dup2(2, 1)  # results are alone on standard output, whatever prints to it meanwhile
    jobs, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115 - both live as long as the process
    instrument: Instrument | None = None
    computed = 0.0
    with os.fdopen(out, "w", encoding="ascii") as results:
        for line in jobs:
            code = 0
            try:
                job = read_job(line)
                instrument = instrument or import_instrument(job)
                result = run_job(job, instrument)
            except JobError as problem:
                traceback.print_exc()
                result, code = {"schema": SCHEMA, "error": {"kind": problem.kind, "message": str(problem)}}, 1
            before, computed = computed, time.process_time()
            result["process"] = {"cpu_seconds": round(computed - before, 3), "peak_mb": _peak_mb()}
            json.dump(result, results, ensure_ascii=True, allow_nan=False)
            results.write("\n")
            results.flush()
            if code:
                return code
    return 0


def _peak_mb() -> float:
    """The most memory that this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform == "linux" else 1024**2), 1)


if __name__ == "__main__":
    sys.exit(main())

"""What runs in the judge's process: closes the jail, then measures (`mlxterp.remeasure`).

Run as a program by `warden.py`, with `-I`. The first line of standard input is the order (the jail and the
limits, as `measuring.py` writes it), each line after it a job; results go to standard output. The jail is
closed before numpy, mlx or setup.py is imported, and what it must prevent is tried.
"""

import json
import os
import resource
import runpy
import sys

from mlxterp_agent.sandbox import worker


def main() -> None:
    worker.belong_to(int(os.environ.pop("AUTOINTERP_WARDEN")))
    order = json.loads(sys.stdin.readline())
    worker.limit_files(order["max_file"])
    if order["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (order["memory"], order["memory"]))
    problem = None if order["jail"] is None else worker.close_jail(order["jail"])
    if problem is not None:
        sys.stdout.write(json.dumps({"error": {"kind": "no_jail", "message": problem}}) + "\n")
        sys.exit(1)
    runpy.run_module("mlxterp.remeasure", run_name="__main__")


if __name__ == "__main__":
    main()

"""What is left of an experiment that killed its warden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.agent.fakes import make_project, source

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")

SWEEPS = """
import subprocess, sys
from mlxterp_agent.sandbox.orphans import become_subreaper, end_orphans, note_started
become_subreaper()
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
began = note_started(own.pid)
null = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True"
leaves = f"import subprocess; print(subprocess.Popen(['/bin/sleep', '60'], {null}, env={{}}).pid)"
left = subprocess.run([sys.executable, "-c", leaves], stdout=subprocess.PIPE, text=True).stdout
assert end_orphans(began + 3600) == 0
print(end_orphans(began), left, own.poll())
own.kill()
own.wait()
"""

KILLS_ITS_WARDEN = """
import os, signal, subprocess, sys, time
null = subprocess.DEVNULL
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
daemon = subprocess.Popen(sleep, stdin=null, stdout=null, stderr=null, start_new_session=True, env={})
open(MARKER, "w").write(str(daemon.pid))
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(600)
"""


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_what_has_lost_its_parent_is_ended_and_what_was_started_here_is_not():
    said = subprocess.run([sys.executable, "-c", SWEEPS], capture_output=True, text=True, check=True).stdout

    ended, left, own = said.split()
    assert (ended, own) == ("1", "None")
    assert is_gone(int(left))


def test_an_experiment_that_kills_its_warden_leaves_no_process_behind(tmp_path: Path):
    project, marker = make_project(tmp_path / "project"), tmp_path / "daemon"
    (project / "experiment.py").write_text(source(f"MARKER = {str(marker)!r}\n{KILLS_ITS_WARDEN}"))

    command = [sys.executable, "-m", "mlxterp_agent.cli", "run", str(project), "--allow-unsandboxed"]
    environment = {**os.environ, "AUTOINTERP_STATE_DIR": str(tmp_path / "state")}
    subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)

    (line,) = (project / "results.jsonl").read_text().splitlines()
    execution = json.loads(line)["record"]["execution"]
    assert is_gone(int(marker.read_text()))
    assert execution["error"] == "the process that watches over the experiment was ended"
    assert execution["seconds"] < 20.0

"""One experiment in a real child process: what it may use, how it ends, what is left of it (nothing)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlxterp.autointerpret.contract import digest
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.core.linux_blas import blas
from mlxterp_agent.platform import BLAS_THREADS, Descendants, FakeClock
from mlxterp_agent.sandbox import child as child_module
from mlxterp_agent.sandbox import runner as runner_module
from mlxterp_agent.sandbox.jail import protection
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.storage.record import Execution
from mlxterp_agent.storage.state_dir import State, open_state

SETUP = 'model = "fake"\ndataset = [1, 2, 3]\nmetrics = ["logit_diff"]\nQUESTION = "why?"\n'
REPORT = """
import json, os
def raw(text):
    os.write(int(os.environ["AUTOINTERP_OUTBOX"][3:]), text.encode())
def report(**result):
    entry = dict(hypothesis="h", method="m", result=result, informative=True, conclusion="c")
    raw(json.dumps({"type": "entry", "entry": entry}) + "\\n")
"""
HANG = "import time\nwhile True: time.sleep(1)\n"


def eventually(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it becomes true before the deadline."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        threading.Event().wait(0.01)
    return True


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Bench:
    """A project with a fake setup.py, and a runner for it."""

    def __init__(self, root: Path) -> None:
        self.project = root / "project"
        self.project.mkdir()
        self.state: State = open_state(self.project)
        self.sealed = self.state.sealed_dir / "setup.py"
        self.run_dir = root / "runs"
        self.run_dir.mkdir()
        self.seal(SETUP)
        self.runner = self.new_runner()

    def seal(self, source: str) -> None:
        self.sealed.write_text(source)
        (self.project / "setup.py").write_text(source)

    def new_runner(self, **options: object) -> Runner:
        options.setdefault("grace", 0.3)
        options.setdefault("isolation", protection().kind)
        self.runner = Runner(self.project, self.sealed, self.state, **options)  # type: ignore[arg-type]
        return self.runner

    def without_jail(self) -> Runner:
        """A runner whose experiments may start processes: what stands behind the jail is tried with it."""
        return self.new_runner(isolation="none")

    def run(self, source: str, *, time_box: float = 20.0, **options: object) -> Execution:
        snapshot = self.run_dir / "experiment.py"
        snapshot.write_text(textwrap.dedent(source))
        return self.runner.run(snapshot, 1, time_box=time_box, **options)  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    made = Bench(tmp_path)
    yield made
    made.runner.close()


def test_an_experiment_that_reports_and_ends_is_ok(bench: Bench):
    outcome = bench.run(REPORT + "import setup\nprint('hello')\nreport(model=setup.model)\n")

    assert (outcome.status, outcome.exit_code, outcome.error, outcome.escaped) == ("ok", 0, None, 0)
    assert [entry.result for entry in outcome.entries] == [{"model": "fake"}]
    assert outcome.stdout_tail == "hello\n"
    assert (bench.run_dir / "stdout.txt").read_text() == "hello\n"
    assert outcome.peak_mb is not None
    assert outcome.peak_mb > 1


def test_the_library_call_of_an_experiment_reaches_the_supervisor_and_not_the_file(bench: Bench):
    outcome = bench.run("""
        from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
        entry = ExperimentEntry("h", "m", {"effect": float("nan")}, True, "c", 1.0)
        ExperimentLog("results.jsonl").append(entry)
    """)

    assert outcome.error is None
    assert [entry.result for entry in outcome.entries] == [{"effect": "NaN"}]
    assert not (bench.project / "results.jsonl").exists()


def test_setup_is_described_once_it_is_imported(bench: Bench):
    report = bench.runner.check_setup()

    assert report.ok
    assert report.facts == {
        "model": "fake",
        "model_digest": None,
        "blas": None,
        "dataset": 3,
        "pairs": None,
        "confirm_pairs": False,
        "metrics": ["logit_diff"],
        "question": "why?",
        "size": None,
        "sae": None,
        "vectors": {},
        "capabilities": None,
    }


def test_what_the_model_can_and_cannot_is_among_the_facts(bench: Bench):
    bench.seal(
        "from types import SimpleNamespace as Model\n"
        "yes, no = Model(available=True, reason=''), Model(available=False, reason='a block has no MLP')\n"
        "sizes = dict(n_layers=2, n_heads=4, n_kv_heads=1, d_model=8)\n"
        "model = Model(name='m', capabilities={'z': yes, 'mlp_out': no}, **sizes)\n"
    )

    facts = bench.runner.check_setup().facts

    assert facts["size"] == "n_layers 2, n_heads 4, n_kv_heads 1, d_model 8"
    assert facts["capabilities"] == "z; missing: mlp_out (a block has no MLP)"


def test_a_setup_that_raises_is_reported_with_its_line(bench: Bench):
    bench.seal("import os\nmodel = os.nothing\n")

    report = bench.runner.check_setup()

    assert not report.ok
    assert report.error == "AttributeError: module 'os' has no attribute 'nothing'"
    assert f'File "{bench.project}/setup.py", line 2' in (report.traceback or "")
    assert "model = os.nothing" in (report.traceback or "")
    assert "worker.py" not in (report.traceback or "")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nos._exit(7)", "exit code 7"),
        ("import os\nos.abort()", "SIGABRT"),
        ("import sys\nsys.exit('no model')", "no model"),
        ("def", "SyntaxError"),
    ],
)
def test_a_setup_that_ends_its_process_is_a_setup_error(bench: Bench, source: str, words: str):
    bench.seal(source)

    assert words in (bench.runner.check_setup().error or "")
    assert bench.run("x = 1").status == "setup_error"


def test_a_setup_that_never_ends_is_stopped(bench: Bench):
    bench.seal(HANG)
    bench.new_runner(setup_timeout=0.2)

    assert bench.runner.check_setup().error == "setup.py was not imported, and said nothing for 0.2 seconds"


@pytest.mark.parametrize(("between", "ok"), [(90.0, True), (100.0, False)])
def test_a_setup_that_says_what_it_does_has_the_time_limit_anew_with_every_line(
    bench: Bench, between: float, ok: bool
):
    bench.seal(
        "import os, sys, time\n"
        "for step in 'one', 'two':\n"
        "    print(step, file=sys.stderr, flush=True)\n"
        "    while not os.path.exists(step): time.sleep(0.01)\n"
    )
    clock, seen = FakeClock(), set[str]()
    bench.new_runner(setup_timeout=100.0, clock=clock)

    def go_on(line: str) -> None:
        if line in ("one", "two") and line not in seen:
            seen.add(line)
            clock.advance(between)
            (bench.project / line).touch()

    assert bench.runner.check_setup(progress=go_on).ok is ok


def test_while_setup_is_imported_its_last_line_of_output_is_shown(bench: Bench):
    bench.seal(
        "import sys\nprint('\\rfetching 10 %\\rfetching 20 %', end='', file=sys.stderr, flush=True)\n" + HANG
    )
    told: list[str] = []

    bench.runner.check_setup(progress=told.append, stop=lambda: "seen" if "fetching 20 %" in told else None)

    assert told[-1] == "fetching 20 %"


def test_a_warm_start_takes_less_than_a_third_of_a_second(bench: Bench):
    bench.runner.check_setup()
    asked = time.time()

    outcome = bench.run(REPORT + "import time\nreport(began=time.time())\n")

    assert outcome.warm
    assert outcome.entries[0].result["began"] - asked < 0.3


def test_a_run_without_a_spare_is_cold_and_works_the_same(bench: Bench):
    outcome = bench.run("import setup")

    assert (outcome.status, outcome.warm) == ("ok", False)


def test_a_spare_that_died_is_replaced(bench: Bench):
    bench.runner.check_setup()
    assert bench.runner._spare is not None
    assert bench.runner._spare.pid is not None
    spare = bench.runner._spare
    os.kill(spare.pid, signal.SIGKILL)
    assert eventually(lambda: spare.ended)

    assert bench.run("import setup").status == "ok"


def test_a_spare_that_imported_another_setup_is_not_used(bench: Bench):
    bench.runner.check_setup()
    bench.seal('model = "another"\n')

    outcome = bench.run(REPORT + "import setup\nreport(model=setup.model)\n")

    assert (outcome.entries[0].result, outcome.warm) == ({"model": "another"}, False)


def test_a_changed_setup_and_a_planted_pyc_in_the_project_do_not_reach_a_run(bench: Bench):
    forged = bench.project / "setup.py"
    forged.write_text('model = "forged"\n')
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(bench.project)], check=True)
    forged.write_text(SETUP.replace("fake", "other"))
    assert list((bench.project / "__pycache__").glob("setup*.pyc"))

    outcome = bench.run(REPORT + "import setup\nreport(model=setup.model)\n")

    assert outcome.entries[0].result == {"model": "fake"}


def test_modules_in_the_project_do_not_shadow_those_of_python(bench: Bench):
    (bench.project / "statistics.py").write_text("raise RuntimeError('shadowed')\n")

    outcome = bench.run(REPORT + "import statistics\nreport(value=statistics.mean([3]))\n")

    assert outcome.error is None
    assert outcome.entries[0].result == {"value": 3}
    assert not (bench.project / "__pycache__").exists()


def test_a_module_of_the_project_is_refused_by_name_when_an_experiment_imports_it(bench: Bench):
    (bench.project / "helper.py").write_text("value = 3\n")

    outcome = bench.run(REPORT + "import helper\nreport(value=helper.value)\n")

    assert outcome.status == "error"
    assert "experiment.py imported helper.py of this project" in str(outcome.error)


def test_the_machinery_is_not_importable_by_its_bare_names(bench: Bench):
    assert bench.run("import journal").error == "ModuleNotFoundError: No module named 'journal'"


def test_what_runs_is_the_frozen_copy_under_the_projects_name(bench: Bench):
    (bench.project / "experiment.py").write_text("raise RuntimeError('edited meanwhile')\n")

    outcome = bench.run(
        REPORT + "import sys\nreport(file=__file__, name=__name__, argv=sys.argv, cwd=os.getcwd())\n"
    )

    path = str(bench.project / "experiment.py")
    assert Path(str(outcome.entries[0].result.pop("cwd"))).name == "scratch"
    assert outcome.entries[0].result == {"file": path, "name": "__main__", "argv": [path]}


def test_an_error_is_shown_where_the_experiment_called_and_where_it_was_raised(bench: Bench):
    outcome = bench.run("""
        import json
        def broken():
            return json.loads("{")
        broken()
    """)

    assert outcome.status == "error"
    assert (outcome.error or "").startswith("json.decoder.JSONDecodeError: Expecting property name")
    trace = outcome.traceback or ""
    assert f'File "{bench.project}/experiment.py", line 5, in <module>\n    broken()' in trace
    assert 'return json.loads("{")' in trace
    assert trace.count("File ") == 3
    assert "decoder.py" in trace


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("import sys; sys.exit(0)", "ok", ""),
        ("import sys; sys.exit(3)", "error", "exit(3)"),
        ("def", "error", "SyntaxError"),
        ("raise KeyboardInterrupt", "error", "KeyboardInterrupt"),
        ("raise MemoryError('no room')", "oom", "no room"),
        ("import os; os._exit(0)", "crashed", "ended without reporting"),
        ("import atexit, os; atexit.register(os._exit, 0)", "crashed", "ended without reporting"),
        ("import os; os.abort()", "crashed", "SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "SIGSEGV"),
    ],
)
def test_each_way_to_end_has_its_status(bench: Bench, source: str, status: str, words: str):
    outcome = bench.run(source)

    assert outcome.status == status
    assert words in (outcome.error or "")


def test_threads_and_exit_handlers_belong_to_the_experiment(bench: Bench):
    outcome = bench.run(
        REPORT
        + textwrap.dedent("""
        import atexit, threading
        go = threading.Event()
        threading.Thread(target=lambda: (go.wait(), report(who="thread"))).start()
        atexit.register(lambda: report(who="exit handler"))
        go.set()
        """)
    )

    assert outcome.status == "ok"
    assert [entry.result["who"] for entry in outcome.entries] == ["thread", "exit handler"]


def test_a_kill_that_is_not_ours_is_a_crash_unless_the_kernel_ran_out_of_memory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    monkeypatch.setattr(runner_module, "oom_kills", lambda: 5)
    crashed = bench.run(kill)
    counts = iter([5, 6])
    monkeypatch.setattr(runner_module, "oom_kills", lambda: next(counts))

    out_of_memory = bench.run(kill)

    assert (crashed.status, crashed.signal, crashed.exit_code) == ("crashed", "SIGKILL", None)
    assert (out_of_memory.status, out_of_memory.signal) == ("oom", "SIGKILL")


def test_a_hang_is_ended_at_its_time_box_and_shows_where_it_hung(bench: Bench):
    outcome = bench.run("import time\ndef waits():\n    time.sleep(60)\nwaits()\n", time_box=0.3)

    assert outcome.status == "timeout"
    assert outcome.error == "run 0001 did not end within its time box of 0.3 seconds"
    assert "line 3, in waits" in (outcome.traceback or "")
    assert outcome.seconds < 5


def test_what_was_reported_before_the_time_box_ended_is_not_lost(bench: Bench):
    outcome = bench.run(REPORT + "report(step=1)\n" + HANG, time_box=0.3)

    assert (outcome.status, len(outcome.entries)) == ("timeout", 1)


@pytest.mark.parametrize(
    "stubborn",
    [
        "import signal\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\n",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n",
        "try:\n    while True: pass\nexcept BaseException: pass\n",
    ],
)
def test_an_experiment_that_does_not_listen_is_killed(bench: Bench, stubborn: str):
    outcome = bench.run(stubborn + HANG, time_box=0.3)

    assert outcome.status == "timeout"
    assert outcome.seconds < 5


def test_the_whole_group_ends_with_the_experiment(bench: Bench):
    bench.without_jail()

    outcome = bench.run(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n" + HANG,
        time_box=1.0,
    )

    assert outcome.status == "timeout"
    assert is_gone(int(outcome.stdout_tail))


DAEMON = """
import os, subprocess, sys
r, w = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(w, str(os.getpid()).encode())
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])
    os._exit(0)
print(os.read(r, 20).decode(), flush=True)
"""


def test_a_daemon_that_left_the_group_is_ended_and_counted(bench: Bench):
    if sys.platform != "linux":
        pytest.skip(
            "needs a subreaper (Linux); elsewhere a walk of the processes catches those that live long enough"
        )

    bench.without_jail()

    outcome = bench.run(DAEMON)

    assert (outcome.status, outcome.escaped) == ("ok", 1)
    assert is_gone(int(outcome.stdout_tail))


LEAVER = """
import subprocess, sys
command = [sys.executable, "-c", "import time; time.sleep(600)"]
null = subprocess.DEVNULL
print(subprocess.Popen(command, stdin=null, stdout=null, start_new_session=True).pid, flush=True)
sys.stdin.read()
"""


def test_where_there_is_no_subreaper_a_process_that_was_seen_is_ended_after_its_parent():
    command, pipe = [sys.executable, "-c", LEAVER], subprocess.PIPE
    parent = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert parent.stdout is not None
    left = int(parent.stdout.readline())
    descendants = Descendants(parent.pid)
    descendants.observe()
    parent.communicate("")

    ended = descendants.end()

    assert ended == 1
    assert eventually(lambda: is_gone(left))


def test_a_process_that_only_has_the_number_of_one_that_was_seen_is_left_alone():
    innocent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    descendants = Descendants(1)
    descendants._seen[innocent.pid] = psutil.Process(innocent.pid).create_time() - 100

    assert descendants.end() == 0
    assert innocent.poll() is None
    innocent.communicate(b"\n")


def test_the_next_spare_survives_the_end_of_a_run(bench: Bench):
    bench.without_jail()
    warmed = False

    def warm_once() -> None:
        nonlocal warmed
        if not warmed:
            warmed = True
            bench.runner.warm()

    bench.run(DAEMON + HANG, time_box=1.0, stop=warm_once)

    assert bench.runner.check_setup().ok
    assert bench.run("import setup").warm


def test_an_experiment_that_ends_its_warden_is_no_success(bench: Bench):
    bench.without_jail()

    outcome = bench.run("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + HANG, time_box=5)

    assert outcome.status == "crashed"
    assert outcome.error == "the process that watches over the experiment was ended"
    assert outcome.seconds < 5


def test_an_experiment_that_stops_its_warden_is_ended_all_the_same(bench: Bench):
    bench.without_jail()

    outcome = bench.run("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\n" + HANG, time_box=0.3)

    assert outcome.status == "timeout"
    assert outcome.seconds < 5


def test_a_flood_of_output_ends_the_run_and_little_of_it_is_kept(bench: Bench):
    bench.new_runner(output_limit=5_000_000)

    outcome = bench.run("block = 'x' * 1_000_000\nwhile True: print(block)\n")

    assert outcome.status == "output_limit"
    assert outcome.output_bytes > 5_000_000
    assert len(outcome.stdout_tail) == 64 * 1024
    assert (bench.run_dir / "stdout.txt").stat().st_size < 1_100_000
    assert "bytes are left out here" in (bench.run_dir / "stdout.txt").read_text()


def test_output_shorter_than_the_cap_is_in_the_file_unchanged(bench: Bench):
    outcome = bench.run("for i in range(150_000): print(f'{i:05d}')\n")

    assert outcome.status == "ok"
    assert (bench.run_dir / "stdout.txt").read_text() == "".join(f"{i:05d}\n" for i in range(150_000))


def test_stopping_a_run_is_an_interruption(bench: Bench):
    outcome = bench.run(HANG, stop=lambda: "Ctrl-C")

    assert (outcome.status, outcome.error) == ("interrupted", "Ctrl-C")


class JumpingClock(FakeClock):
    """Awake time jumps by 1000 s as soon as this file exists."""

    def __init__(self, signal_file: Path) -> None:
        super().__init__()
        self._file = signal_file

    def monotonic(self) -> float:
        return 1000.0 if self._file.exists() else 0.0


def test_a_child_that_ended_while_the_supervisor_was_stopped_past_the_deadline_is_heard_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    late, judged = bench.run_dir / "late", bench.run_dir / "judged"
    monkeypatch.setattr(runner_module, "_LAST_WORD", 10)
    bench.new_runner(clock=JumpingClock(late), isolation="none")
    source = f"import os\nopen({str(late)!r}, 'w').close()\nwhile not os.path.exists({str(judged)!r}): pass\n"

    outcome = bench.run(source, time_box=10, stop=lambda: judged.touch() if late.exists() else None)

    assert outcome.status == "ok"
    assert outcome.seconds == 1000


def test_time_asleep_does_not_use_up_a_time_box(bench: Bench):
    clock = FakeClock()
    bench.new_runner(clock=clock)
    asked = []

    def sleeps_once() -> str | None:
        asked.append(1)
        clock.sleep(1000)
        return "enough" if len(asked) > 3 else None

    assert bench.run(HANG, time_box=10, stop=sleeps_once).status == "interrupted"


def test_a_stopped_experiment_is_woken_to_say_where_it_was(bench: Bench):
    bench.new_runner(grace=5)

    outcome = bench.run("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n" + HANG, time_box=0.3)

    assert outcome.status == "timeout"
    assert "experiment.py" in (outcome.traceback or "")


def test_keys_stay_out_of_the_childs_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-1")
    monkeypatch.setenv("HF_TOKEN", "canary-2")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:canary-3@example.org/simple")
    monkeypatch.setenv("SOMETHING_ELSE", "canary-4")
    monkeypatch.setenv("LD_PRELOAD_OF_MINE", "canary-5")
    monkeypatch.setenv("MLXTERP_BLAS", "off")

    outcome = bench.run("import os, json\nprint(json.dumps(dict(os.environ)))\n")

    environment = json.loads(outcome.stdout_tail)
    assert "canary" not in outcome.stdout_tail
    assert environment["MLXTERP_BLAS"] == "off"
    assert environment["PATH"] == os.environ["PATH"]
    assert Path(environment["TMPDIR"]).parent == bench.state.tmp_dir


@pytest.mark.skipif(sys.platform != "linux", reason="on macOS mlx compiles for Metal, without g++")
def test_mlx_calls_no_compiler_in_an_experiment_unless_the_person_wants_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    source = "import os\nprint(os.environ['MLX_DISABLE_COMPILE'])\n"

    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    by_default = bench.run(source).stdout_tail.strip()
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "0")
    as_wanted = bench.run(source).stdout_tail.strip()

    assert (by_default, as_wanted) == ("1", "0")


def test_an_experiment_computes_with_one_blas_thread_unless_the_person_wants_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    for name in BLAS_THREADS:
        monkeypatch.delenv(name, raising=False)
    source = f"import os\nprint([os.environ.get(name) for name in {BLAS_THREADS}])\n"

    by_default = bench.run(source).stdout_tail.strip()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    as_wanted = bench.run(source).stdout_tail.strip()

    assert BLAS_THREADS == blas.THREADS_ENVS
    assert (by_default, as_wanted) == ("['1', None]", "[None, '2']")


def test_each_run_has_a_directory_for_temporary_files_that_is_removed(bench: Bench):
    source = "import tempfile\nopen(tempfile.mkstemp()[1], 'w').write('x')\nprint(tempfile.gettempdir())\n"

    first, second = bench.run(source).stdout_tail.strip(), bench.run(source).stdout_tail.strip()

    assert first != second
    assert list(bench.state.tmp_dir.iterdir()) == []


def test_an_experiment_cannot_read_its_orders_or_leave_a_core_file(bench: Bench):
    source = "import resource, sys\ncore = resource.getrlimit(resource.RLIMIT_CORE)\n"

    outcome = bench.run(REPORT + source + "report(stdin=sys.stdin.read(), core=core)\n")

    assert outcome.entries[0].result == {"stdin": "", "core": [0, 0]}


def frame(**fields: object) -> str:
    return json.dumps(fields) + "\n"


ENTRY = {"hypothesis": "h", "method": "m", "result": {}, "informative": True, "conclusion": "c"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json\n", "not JSON"),
        ("[1]\n", "an object is needed"),
        ("[" * 100_000 + "\n", "nested deeper"),
        ('{"type": "entry", "type": "done"}\n', "given twice"),
        ('{"type": "entry", "entry": {"result": NaN}}\n', "bare NaN"),
        ('{"type": "entry", "entry": {"result": 1e999}}\n', "1e999"),
        (frame(type="secret"), "unknown type 'secret'"),
        (frame(type="ready", facts={}), "'ready' came when none was expected"),
        (frame(type="done", status="perfect"), "'done' came when none was expected"),
        (frame(type="entry"), "without an entry"),
        (frame(type="entry", entry={"hypothesis": "h"}), "an entry without 'method'"),
        (frame(type="entry", entry={**ENTRY, "informative": "yes"}), "informative is 'yes'"),
        (frame(type="entry", entry={**ENTRY, "record": {"tier": "claim"}}), "only the supervisor writes"),
        ("cut off", "cannot be read"),
    ],
)
def test_a_malformed_frame_is_noted_and_costs_nothing_else(bench: Bench, line: str, words: str):
    source = REPORT + f"raw({line!r})\n"
    bad_only = bench.run(source)

    assert [words in bad.text for bad in bad_only.bad_frames] == [True]
    assert bad_only.entries == ()


def test_a_good_frame_after_a_bad_one_is_read(bench: Bench):
    outcome = bench.run(REPORT + "raw('rubbish\\n')\nreport(x=1)\n")

    assert (outcome.status, len(outcome.entries), len(outcome.bad_frames)) == ("ok", 1, 1)


def test_more_entries_or_bytes_than_a_report_may_have_are_left_out(bench: Bench):
    outcome = bench.run(
        REPORT
        + "for i in range(70): report(i=i)\n"
        + "with open(int(os.environ['AUTOINTERP_OUTBOX'][3:]), 'w', closefd=False) as out:\n"
        + "    for i in range(80): out.write('y' * 1_000_000)\n"
    )

    assert len(outcome.entries) == 64
    assert sum("more than 64 entries" in bad.text for bad in outcome.bad_frames) == 6
    assert sum("longer than 4,000,000 bytes" in bad.text for bad in outcome.bad_frames) == 1
    assert sum("more than 64,000,000 bytes" in bad.text for bad in outcome.bad_frames) == 1


def test_a_forged_success_before_leaving_is_believed_only_as_a_report(bench: Bench):
    forged = frame(type="done", status="ok")

    outcome = bench.run(REPORT + f"raw({forged!r})\nreport(late=1)\nraise ValueError\n")

    assert outcome.status == "crashed"
    assert len(outcome.bad_frames) == 2


SUPERVISOR = """
import sys
from pathlib import Path
from mlxterp_agent.sandbox.runner import Runner
from mlxterp_agent.storage.state_dir import open_state
project, snapshot = Path(sys.argv[1]), Path(sys.argv[2])
state = open_state(project)
runner = Runner(project, state.sealed_dir / "setup.py", state, isolation="none")
assert runner.check_setup().ok
spare = runner._spare
def started():
    print(spare.pid, spare._process.pid, spare.stdout.strip(), flush=True) if spare.stdout else None
runner.run(snapshot, 1, time_box=600, stop=started)
"""


@pytest.mark.parametrize("experiment", [HANG, "while True: pass\n"])
def test_nothing_outlives_a_supervisor_that_is_killed(bench: Bench, experiment: str):
    snapshot = bench.run_dir / "experiment.py"
    daemon = DAEMON if sys.platform == "linux" else "print(1, flush=True)\n"
    snapshot.write_text(daemon + experiment)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(bench.project), str(snapshot)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    pids = [int(pid) for pid in supervisor.stdout.readline().split()]
    if sys.platform != "linux":
        pids.pop()

    supervisor.kill()
    supervisor.communicate()

    assert eventually(lambda: all(is_gone(pid) for pid in pids), seconds=2)


def test_an_idle_spare_does_not_outlive_a_supervisor_that_is_killed(bench: Bench):
    code = SUPERVISOR.replace(
        "runner.run(", "print(spare.pid, spare._process.pid, flush=True)\ninput()\nrunner.run("
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, str(bench.project), "x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    pids = [int(pid) for pid in supervisor.stdout.readline().split()]
    assert len(pids) == 2

    supervisor.kill()
    supervisor.communicate()

    assert eventually(lambda: all(is_gone(pid) for pid in pids), seconds=2)


def test_a_runner_leaves_no_descriptor_and_no_process_behind(bench: Bench):
    me = psutil.Process()
    bench.run("x = 1")
    before = me.num_fds()

    for _ in range(3):
        bench.run("x = 1")

    assert me.num_fds() == before
    assert me.children(recursive=True) == []


needs_jail = pytest.mark.skipif(
    protection().kind == "none", reason="this machine has no jail: " + protection().reason
)


@needs_jail
def test_an_experiment_that_edits_setup_py_fails_and_setup_py_is_untouched(bench: Bench):
    outcome = bench.run("open('setup.py', 'a').write('model = None')\n")

    assert outcome.status == "error"
    assert (outcome.error or "").startswith("PermissionError")
    assert (bench.project / "setup.py").read_text() == SETUP
    assert outcome.isolation == protection().kind


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process of somebody else, that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


@needs_jail
@pytest.mark.parametrize(
    "attack",
    [
        "append_to_log",
        "connect_tcp",
        "daemonise",
        "edit_setup",
        "forge_journal",
        "kill_another",
        "read_environment_of_another",
        "read_key_file",
        "read_salt",
        "run_a_program",
        "write_in_a_thread",
    ],
)
def test_a_hostile_experiment_does_nothing_through_the_runner(
    bench: Bench, sleeper: int, attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    (bench.project / "results.jsonl").touch()
    (bench.state.root / "salt").write_text("salt")
    bench.state.journal_path.touch()
    names = {"project": bench.project, "state": bench.state.root, "home": home}
    server = socket.create_server(("127.0.0.1", 0))
    place = [f"{name} = {str(path)!r}" for name, path in names.items()]
    place += [f"victim = {sleeper}", f"port = {server.getsockname()[1]}"]
    text = (Path(__file__).resolve().parents[2] / "hostile" / f"{attack}.py").read_text()
    before = contents(bench)

    outcome = bench.run("\n".join(place) + "\n" + text)

    server.close()
    assert (outcome.status, outcome.escaped) == ("error", 0), outcome
    assert contents(bench) == before
    assert not is_gone(sleeper)


def contents(bench: Bench) -> dict[Path, bytes]:
    """Every file of the project and the state, but for those of the run and of the next spare."""
    roots = (bench.project, bench.state.sealed_dir, bench.state.journal_path.parent)
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if not path.is_relative_to(bench.state.tmp_dir)}


LOOKS = """
import os
found = []
def look(path):
    try:
        with open(path, "rb") as file:
            if b"canary" + b"-7" in file.read(1_000_000):
                found.append(path)
    except (OSError, ValueError):
        pass
for place in PLACES:
    for folder, _, names in os.walk(place):
        for name in names:
            look(os.path.join(folder, name))
for process in PROCESSES:
    for name in ("environ", "cmdline"):
        look(f"/proc/{process}/{name}")
print(found)
"""


@needs_jail
def test_a_key_appears_nowhere_that_an_experiment_can_read(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    for folder in (".ssh", ".aws", ".config/x", ".cache/huggingface/hub"):
        (home / folder).mkdir(parents=True)
    for name in (".netrc", ".ssh/id", ".aws/credentials", ".config/x/y", ".cache/huggingface/token"):
        (home / name).write_text("canary-7")
    (bench.state.root / "key").write_text("canary-7")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-7")
    monkeypatch.delenv("HF_HOME", raising=False)
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    source = LOOKS.replace("PLACES", repr([str(home), str(bench.state.root)]))
    source = source.replace("PROCESSES", repr([os.getpid(), holder.pid]))

    jailed = bench.run(source)
    bench.without_jail()
    bare = bench.run(source)

    holder.communicate(b"\n")
    assert (jailed.status, jailed.stdout_tail.strip()) == ("ok", "[]")
    assert str(home / ".ssh/id") in bare.stdout_tail
    assert str(bench.state.root / "key") in bare.stdout_tail
    if sys.platform == "linux":
        assert f"/proc/{holder.pid}/environ" in bare.stdout_tail


@needs_jail
@pytest.mark.skipif(sys.platform != "linux", reason="on macOS sandbox-exec closes the jail")
def test_a_jail_that_cannot_be_closed_ends_the_child_before_setup_py(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    broken = bench.run_dir / "linux.py"
    broken.write_text(
        "class JailError(Exception): pass\ndef close(read, write): raise JailError('seccomp: refused')\n"
    )
    monkeypatch.setattr(child_module, "JAIL", broken)
    bench.seal("open('ran', 'w').close()\n")

    report = bench.runner.check_setup()

    assert (report.ok, report.jail_error) == (False, "seccomp: refused")
    assert not (bench.project / "ran").exists()


@needs_jail
@pytest.mark.skipif(sys.platform != "linux", reason="on macOS sandbox-exec closes the jail")
def test_a_jail_that_closes_and_does_not_hold_is_noticed(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    ajar = bench.run_dir / "linux.py"
    ajar.write_text("class JailError(Exception): pass\ndef close(read, write): pass\n")
    monkeypatch.setattr(child_module, "JAIL", ajar)

    assert "can be read all the same" in (bench.runner.check_setup().jail_error or "")
    assert bench.run("x = 1").status == "setup_error"


@pytest.mark.parametrize("isolation", sorted({"none", protection().kind}))
def test_an_experiment_reads_the_projects_files_and_writes_beside_them(bench: Bench, isolation: str):
    (bench.project / "words.txt").write_text("a b")
    (bench.project / "report.html").write_text("the supervisor's")
    (bench.project / ".hidden").touch()
    bench.new_runner(isolation=isolation)

    outcome = bench.run("""
        import os
        from pathlib import Path
        assert Path("words.txt").read_text() == "a b"
        assert not Path(".hidden").exists()
        Path("report.html").write_text("mine")
        Path("tables").mkdir()
        Path("tables/one.csv").write_text("1,2")
        Path("way out").symlink_to("/etc/passwd")
        Path("large").write_bytes(b"x" * 20_000_001)
    """)

    assert outcome.error is None
    assert (outcome.files, outcome.files_left_out) == (("report.html", "tables/one.csv"), 1)
    files = bench.run_dir / "files"
    assert (files / "report.html").read_text() == "mine"
    assert sorted(path.name for path in files.iterdir()) == ["report.html", "tables"]
    assert (bench.project / "report.html").read_text() == "the supervisor's"


@pytest.mark.parametrize("isolation", sorted({"none", protection().kind}))
def test_an_experiment_reads_the_log_by_its_name_in_the_project(bench: Bench, isolation: str):
    ExperimentLog(bench.project / "results.jsonl").append(ExperimentEntry("h", "m", {}, True, "before", None))
    bench.new_runner(isolation=isolation)

    outcome = bench.run("""
        from mlxterp.autointerpret import ExperimentLog
        print([entry.conclusion for entry in ExperimentLog("results.jsonl").entries()])
    """)

    assert (outcome.error, outcome.stdout_tail) == (None, "['before']\n")


def test_a_pipe_among_the_files_of_an_experiment_does_not_stop_the_supervisor(bench: Bench):
    bench.without_jail()

    outcome = bench.run("import os\nos.mkfifo('pipe')\n")

    assert (outcome.status, outcome.files, outcome.files_left_out) == ("ok", (), 1)


def test_directories_nested_without_end_do_not_stop_the_supervisor(bench: Bench):
    outcome = bench.run("""
        import os
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        open("deep", "w").close()
    """)

    assert (outcome.status, outcome.files, outcome.files_left_out) == ("ok", (), 1)
    assert list(bench.state.tmp_dir.iterdir()) == []


def test_a_folder_for_files_that_is_a_link_is_replaced_and_not_followed(bench: Bench, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bench.run_dir / "files").symlink_to(elsewhere)

    outcome = bench.run("open('a', 'w').close()\n")

    assert outcome.files == ("a",)
    assert list(elsewhere.iterdir()) == []
    assert (bench.run_dir / "files" / "a").is_file()


@needs_jail
def test_caches_are_made_once_for_a_setup_and_are_read_only_in_runs(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MLXTERP_CACHE", str(cache))
    bench.seal(
        "import os\nplace = os.environ['MLXTERP_CACHE'] + '/made'\n"
        "try:\n    open(place, 'a').write('x')\nexcept PermissionError:\n    pass\n"
        "model = open(place).read()\n"
    )
    report = bench.runner.check_setup()
    bench.runner.close()
    bench.runner.check_setup()

    outcome = bench.run("import os\nopen(os.environ['MLXTERP_CACHE'] + '/made', 'a')\n")

    assert report.facts["model"] == "x"
    assert (outcome.error or "").startswith("PermissionError")
    assert (cache / "made").read_text() == "x"


def test_what_fails_while_caches_are_made_and_not_afterwards_is_no_failure(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("MLXTERP_CACHE", str(cache))
    bench.seal(
        "import os\ntry:\n    open(os.environ['MLXTERP_CACHE'] + '/half', 'x')\nexcept OSError:\n    pass\n"
        "else:\n    raise OSError('the disk is full')\nmodel = 'm'\n"
    )

    assert bench.runner.check_setup().ok


def test_an_experiment_may_not_write_or_open_files_without_end(bench: Bench):
    source = (
        "import resource as r\nreport(file=r.getrlimit(r.RLIMIT_FSIZE), open=r.getrlimit(r.RLIMIT_NOFILE))\n"
    )

    limits = bench.run(REPORT + source).entries[0].result

    assert limits["file"] == [4_000_000_000, 4_000_000_000]
    assert max(limits["open"]) <= 4096


def test_digests_decide_what_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    bench.runner.check_setup()
    monkeypatch.setattr(
        runner_module, "digest", lambda data: digest(data + b"#") if b"x = 1" in data else digest(data)
    )

    outcome = bench.run("x = 1")

    assert outcome.status == "error"
    assert "was changed between its digest and its run" in (outcome.error or "")


GARBAGE = """
import os, signal, stat, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for name in os.listdir(f"/proc/{os.getppid()}/fd"):
    try:
        fd = os.open(f"/proc/{os.getppid()}/fd/{name}", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        continue
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.write(fd, b'\\xff{"code": "x"}\\n[[[\\n{"pid": -1}\\n')
        os.write(fd, b'{"code": 0, "signal": 99, "escaped": 0, "peak": 0}\\n')
while True:
    time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only /proc leads to the pipes of another process")
def test_garbage_on_the_pipes_of_the_warden_does_not_delay_the_end(bench: Bench):
    bench.without_jail()

    outcome = bench.run(GARBAGE, time_box=1.0)

    assert outcome.status == "timeout"
    assert outcome.seconds < 1.0 + 2.0

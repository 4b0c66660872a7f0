"""The command: what it prints, with which number it ends, what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp.autointerpret.scaffold import scaffolds
from mlxterp_agent import exit_codes
from mlxterp_agent.cli import app
from mlxterp_agent.events import Event, SetupReady
from mlxterp_agent.exit_codes import end_of
from mlxterp_agent.researchers.external import External
from mlxterp_agent.run_config import (
    Options,
    UsageError,
    merge,
    next_time,
)
from mlxterp_agent.sandbox.jail import Protection, protection
from mlxterp_agent.storage.state_dir import ProjectLock, open_state
from mlxterp_agent.supervisor import prepare
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import entries, git, make_project, source, supervise, verdicts


class CommandOutput(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def autointerp(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandOutput]:
    """The command, in this process."""

    def call(*arguments: object) -> CommandOutput:
        capsys.readouterr()
        code = end_of(lambda: app([str(each) for each in arguments]))
        return CommandOutput(code, *capsys.readouterr())

    return call


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of something else: the pages take a second."""
    from mlxterp_agent.supervisor import report_process as reporting

    monkeypatch.setattr(reporting, "refresh_report", lambda directory, *, wait: None)


def test_help_loads_nothing_heavy():
    heavy = ("mlx", "mlx_lm", "matplotlib", "git", "anthropic", "numpy", "pydantic", "watchdog")
    code = (
        "import sys\nfrom mlxterp_agent.cli import main\nsys.argv = ['autointerp', '--help']\n"
        f"try:\n    main()\nfinally:\n    print([m for m in {heavy!r} if m in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.splitlines()[-1] == "[]"


def test_help_documents_every_exit_code(autointerp):
    said = autointerp("--help")

    assert said.code == exit_codes.FINISHED
    assert all(meaning in said.out for meaning in exit_codes.MEANING.values())


def test_the_version_is_one_line(autointerp):
    from mlxterp import __version__

    assert autointerp("--version") == (0, f"autointerp {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("start", "--nonsense"),
        ("frobnicate",),
        ("start", "DIR", "--hours", "0"),
        ("start", "DIR", "--hours", "nan"),
        ("start", "DIR", "--max-experiments", "0"),
        ("start", "DIR", "--max-usd", "-1"),
        ("start", "DIR", "--until", "25:00"),
        ("start", "DIR", "--agent", "somebody"),
        ("start", "DIR", "--model", "another"),
    ],
)
def test_a_command_line_that_means_nothing_ends_with_2(autointerp, project, arguments):
    said = autointerp(*(str(project) if each == "DIR" else each for each in arguments))

    assert said.code == exit_codes.USAGE
    assert said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("command", ["watch", "run", "status", "log", "report", "verify"])
def test_a_directory_that_is_no_investigation_is_named_with_what_makes_one(autointerp, tmp_path, command):
    said = autointerp(command, tmp_path)

    assert said.code == exit_codes.PROJECT
    assert str(tmp_path) in said.err
    assert "autointerp init" in said.err


def test_a_missing_setup_py_is_named(autointerp, project):
    (project / "setup.py").unlink()

    said = autointerp("watch", project)

    assert said.code == exit_codes.PROJECT
    assert "setup.py is missing" in said.err


def test_a_setup_py_that_raises_is_shown_with_its_line(autointerp, project):
    (project / "setup.py").write_text("\nraise RuntimeError('the weights are \x1b[31mnot here')\n")

    (project / "experiment.py").write_text("x = 1\n")

    said = autointerp("run", project)

    assert said.code == exit_codes.PROJECT
    assert "RuntimeError: the weights are not here" in said.err
    assert "(line 2: raise RuntimeError('the weights are not here'))" in said.err
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err


def test_run_prints_the_verdict_of_the_current_experiment(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))

    said = autointerp("run", project)

    assert said.code == exit_codes.FINISHED
    assert said.out.startswith("0001 lead: alpha was found\n")
    assert len(said.out.encode()) <= 2001
    assert verdicts(project) == ["lead"]


def test_run_prints_the_line_itself_for_a_program(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))

    said = autointerp("run", project, "--json")

    assert json.loads(said.out) == entries(project)[0].to_dict()


def test_run_a_second_time_says_what_came_of_it_and_runs_nothing(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))
    autointerp("run", project)

    said = autointerp("run", project)

    assert said.code == exit_codes.FINISHED
    assert "ran before as 0001" in said.out
    assert len(entries(project)) == 1


def test_run_of_a_file_that_does_not_parse_names_the_line(autointerp, project):
    (project / "experiment.py").write_text("x = 1\ndef broken(\n")

    said = autointerp("run", project)

    assert said.code == exit_codes.PROJECT
    assert "line 2" in said.out
    assert entries(project) == []


@pytest.mark.parametrize(("name", "code"), [("crash", 8), ("dull", 0), ("alpha", 0)])
def test_run_ends_with_a_code_of_its_own_where_the_experiment_is_invalid(autointerp, project, name, code):
    (project / "experiment.py").write_text(source(name))

    first, again = autointerp("run", project), autointerp("run", project)

    assert (first.code, again.code) == (code, code)
    assert "ran before" in again.out


def test_run_keeps_to_its_own_time_box(autointerp, project):
    (project / "experiment.py").write_text(source("hang"))

    said = autointerp("run", project, "--time-per-experiment", 1)

    assert said.code == exit_codes.INVALID
    assert "time box of 1 s" in said.out


def test_run_beside_a_supervisor_waits_for_its_verdict(autointerp, project):
    ready = threading.Event()
    answer: list[CommandOutput] = []

    def beside() -> None:
        ready.wait(60)
        (project / "experiment.py").write_text(source("gated"))
        command = [sys.executable, "-m", "mlxterp_agent.cli", "run", str(project)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            first = process.stderr.readline()
            (project / "gate").touch()
            out = process.stdout.read()
        answer.append(CommandOutput(process.returncode, out, first))

    def listen(event: Event) -> None:
        if isinstance(event, SetupReady):
            ready.set()

    asking = threading.Thread(target=beside)
    asking.start()
    run(project, External(), Options(max_experiments=1), listen)
    asking.join()

    assert answer[0].code == exit_codes.FINISHED
    assert (
        f"waiting for the verdict of the supervisor that works here, process {os.getpid()}" in answer[0].err
    )
    assert answer[0].out.startswith("0001 lead: gated was found")
    assert len(entries(project)) == 1


def test_two_supervisors_on_one_directory_end_the_second_with_75(autointerp, project):
    with ProjectLock(open_state(project)):
        said = autointerp("watch", project)

    assert said.code == exit_codes.LOCKED
    assert str(os.getpid()) in said.err


def test_status_log_and_verify_work_without_the_lock_and_before_the_first_run(autointerp, project):
    with ProjectLock(open_state(project)):
        status, log, checks = (autointerp(command, project) for command in ("status", "log", "verify"))

    assert "supervised by process" in status.out
    assert log.out == "no experiment yet\n"
    assert checks.code == exit_codes.CONTRACT  # there is no repository yet, and it says so
    assert "there is no repository" in checks.out


def test_status_says_what_was_found_and_what_is_left(autointerp, project):
    supervise(project, ["alpha", "dull"], options=Options(max_experiments=7))

    text, fields = autointerp("status", project).out, json.loads(autointerp("status", project, "--json").out)

    assert "What is the mean?" in text
    assert "1 lead, 1 note" in text
    assert "2 experiments, 5 left" in text
    assert "every proposal was made" in text
    assert fields["verdicts"] == {"lead": 1, "note": 1}
    assert fields["experiments_left"] == 5
    assert fields["supervised_by"] is None


def test_log_is_a_table_for_people_and_lines_for_programs(autointerp, project):
    supervise(project, ["alpha", "dull"])

    table = autointerp("log", project).out.splitlines()
    lines = [json.loads(line) for line in autointerp("log", project, "--json").out.splitlines()]

    assert [line.split()[:2] for line in table] == [["0001", "lead"], ["0002", "note"]]
    assert lines == [entry.to_dict() for entry in entries(project)]
    assert len(autointerp("log", project, "--kept").out.splitlines()) == 1
    assert autointerp("log", project, "-n", 1).out.startswith("  0002")


def test_watch_ends_with_what_was_found_where_the_report_is_and_how_to_go_on(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))

    said = autointerp("watch", project, "--max-experiments", 1)

    assert said.code == exit_codes.FINISHED
    assert "0001 lead: alpha was found" in said.out
    assert "report.html" in said.out
    assert "--max-experiments 2" in said.out
    assert (project / "report.html").stat().st_size > 1000
    assert (project / "report.md").exists()


@pytest.mark.usefixtures("without_report")
def test_watch_as_json_is_json_from_the_first_line_to_the_last(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))

    said = autointerp("watch", project, "--max-experiments", 1, "--json")

    lines = [json.loads(line) for line in said.out.splitlines()]
    assert lines[0]["event"] == "started"
    assert [line["verdict"] for line in lines if line["event"] == "decided"] == ["lead"]
    assert lines[-1] == {
        "event": "ended",
        "reason": "the budget of 1 experiments is used up",
        "exit_code": 0,
        "report": True,
    }


def test_init_makes_an_investigation_in_a_repository_of_its_own(autointerp, tmp_path):
    target = tmp_path / "deep" / "er"

    said = autointerp("init", target, "--model", "toy-induction", "--question", "Why is it repeated?")

    assert said.code == exit_codes.FINISHED
    assert "16 independent clusters to explore, up to 48 fresh ones for each declared claim" in said.out
    assert f"autointerp start {target}" in said.out
    assert "importing setup.py, which loads toy-induction" in said.err
    assert git(target, "log", "--format=%s") == "Begin the investigation"
    assert git(target, "status", "--short") == ""
    assert "Why is it repeated?" in (target / "program.md").read_text()


def own_pairs(directory: Path, n: int) -> Path:
    """A file of pairs that the toy shows."""
    from mlxterp import InterpretableModel
    from mlxterp.datasets import repeated_random_pairs

    pairs = repeated_random_pairs(InterpretableModel("toy-induction"), n=n, period=8, repeats=1, seed=3)
    lines = [f"{p.clean},{p.corrupted},{p.answer},{p.foil}" for p in pairs]
    path = directory / "pairs.csv"
    path.write_text("\n".join(["clean,corrupted,answer,foil", *lines]))
    return path


def test_init_checks_a_persons_own_prompts_and_says_what_can_be_decided(autointerp, tmp_path):
    prompts = own_pairs(tmp_path, 26)

    said = autointerp(
        "init", tmp_path / "p", "--model", "toy-induction", "--question", "Who?", "--prompts", prompts
    )

    assert said.code == exit_codes.FINISHED
    assert "26 used" in said.out
    assert "8 independent clusters to explore, 18 to decide declared claims on" in said.out
    assert "EXAMPLE" not in said.out
    assert "checking 26 pairs of pairs.csv with toy-induction" in said.err
    assert "name='line 2'" in (tmp_path / "p" / "setup.py").read_text().replace('"', "'")
    assert git(tmp_path / "p", "status", "--short") == ""


def test_init_says_of_10_pairs_that_nothing_can_be_decided_and_how_many_are_missing(autointerp, tmp_path):
    prompts = own_pairs(tmp_path, 10)

    said = autointerp("init", tmp_path / "p", "--model", "toy-induction", "--prompts", prompts)

    assert said.code == exit_codes.FINISHED
    assert "14 more are needed" in said.out
    assert "no declared effect can be decided" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["init", "--prompts", "bad.csv"], exit_codes.PROJECT, "bad.csv, line 1"),
        (["init", "--prompts", "nowhere.csv"], exit_codes.PROJECT, "there is no such file"),
        (["start", "--prompts", "bad.csv", "--agent", "none"], exit_codes.PROJECT, "bad.csv, line 1"),
        (["init", "--model", "smollm2-135"], exit_codes.PROJECT, "Did you mean 'smollm2-135m'?"),
        (["init", "--model", "./models/tiny"], exit_codes.PROJECT, "no file or directory here"),
        (["init", "--scaffold", "inductoin"], exit_codes.PROJECT, "induction"),
        (["init", "--max-experiments", "0"], exit_codes.PROJECT, "max_experiments is 0"),
        (["start", "--hours", "-1", "--agent", "none"], exit_codes.USAGE, "--hours -1"),
        (["start", "--until", "25:99", "--agent", "none"], exit_codes.USAGE, "--until '25:99'"),
        (["start", "--max-experiments", "0", "--agent", "none"], exit_codes.USAGE, "--max-experiments 0"),
        (["start", "--scaffold", "nonsense", "--agent", "none"], exit_codes.PROJECT, "no scaffold"),
        (["start", "--model", "smollm", "--agent", "none"], exit_codes.PROJECT, "no bundled model"),
    ],
)
def test_a_typo_leaves_nothing_behind(autointerp, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("clean;corrupted;answer;foil\n")
    before = sorted(tmp_path.iterdir())

    ended = autointerp(arguments[0], tmp_path / "new", *arguments[1:])

    assert ended.code == code
    assert said in ended.err
    assert sorted(tmp_path.iterdir()) == before


def test_without_prompts_the_example_is_called_one_and_start_is_not_advised(autointerp, tmp_path):
    asked = ("--model", "toy-induction", "--question", "gender bias?")

    made = autointerp("init", tmp_path / "p", *asked)
    refused = autointerp("start", tmp_path / "p", "--agent", "scripted")
    status = autointerp("status", tmp_path / "p")

    assert "EXAMPLE: setup.py holds the example of the scaffold 'induction'" in made.out
    assert "then: autointerp start" not in made.out
    assert refused.code == exit_codes.RESEARCHER
    assert "does not answer the question" in status.out


@pytest.mark.parametrize("scaffold", ["induction", "generic"])
def test_the_example_for_a_toy_uses_words_that_it_has(autointerp, tmp_path, scaffold):
    said = autointerp("init", tmp_path / "p", "--model", "toy-induction", "--scaffold", scaffold)

    assert "independent clusters to explore" in said.out
    assert "cannot be imported" not in said.out


def test_a_relative_path_of_a_model_is_that_of_the_callers_directory(autointerp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").write_bytes(b"")

    said = autointerp("init", tmp_path / "p", "--model", "models/tiny.gguf", "--scaffold", "generic")

    assert f"MODEL_NAME = {str(tmp_path / 'models' / 'tiny.gguf')!r}" in (tmp_path / "p/setup.py").read_text()
    assert "cannot be imported" in said.out
    assert "before you start it" in said.out


@pytest.mark.parametrize("command", ["init", "start"])
def test_the_help_names_the_default_scaffold(autointerp, command):
    said = " ".join(autointerp(command, "--help").out.replace("│", " ").split())

    assert "Default: factual_recall; induction for a toy model; generic with --prompts" in said


def test_a_question_that_the_script_cannot_answer_is_refused_before_anything_is_made(autointerp, tmp_path):
    asked = ("--scaffold", "induction", "--agent", "scripted", "--question", "gender bias?")

    said = autointerp("start", tmp_path / "new", *asked)

    assert said.code == exit_codes.RESEARCHER
    assert "cannot answer 'gender bias?'" in said.err
    assert not (tmp_path / "new").exists()


def test_init_overwrites_nothing(autointerp, project):
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    said = autointerp("init", project)

    assert said.code == exit_codes.PROJECT
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_an_unknown_scaffold_is_answered_with_those_there_are(autointerp, tmp_path):
    said = autointerp("init", tmp_path / "new", "--scaffold", "nonsense")

    assert said.code == exit_codes.PROJECT
    assert all(name in said.err for name in scaffolds())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("agent", ["claude", "api"])
def test_a_researcher_of_a_later_version_is_refused(autointerp, tmp_path, agent):
    said = autointerp("start", tmp_path / "new", "--agent", agent)

    assert said.code == exit_codes.RESEARCHER
    assert "--agent scripted" in said.err
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("without_report")
def test_start_says_which_researcher_it_took_and_goes_on_where_it_stopped(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))

    first = autointerp("start", project, "--agent", "none", "--max-experiments", 1)
    second = autointerp("start", project, "--agent", "none", "--max-experiments", 1)

    assert first.out.startswith(f"going on with {project}\n")
    assert "[any editor" in first.out
    assert second.code == exit_codes.FINISHED
    assert "resuming after 1" in second.out
    assert len(entries(project)) == 1


@pytest.mark.usefixtures("without_report")
def test_start_without_a_directory_goes_on_with_the_one_it_stands_in(autointerp, project, monkeypatch):
    (project / "experiment.py").write_text(source("alpha"))
    monkeypatch.chdir(project)

    said = autointerp("start", "--agent", "none", "--max-experiments", 1)

    assert said.code == exit_codes.FINISHED
    assert verdicts(project) == ["lead"]
    assert not (project / "investigation").exists()


@pytest.mark.usefixtures("without_report")
def test_start_without_a_directory_goes_on_with_the_investigation_beside_it(
    autointerp, tmp_path, monkeypatch
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = make_project(tmp_path / "investigation")
    (project / "experiment.py").write_text(source("alpha"))
    monkeypatch.chdir(tmp_path)

    said = autointerp("start", "--agent", "none", "--max-experiments", 1)

    assert said.code == exit_codes.FINISHED
    assert verdicts(project) == ["lead"]


def test_a_directory_in_the_place_of_the_report_is_moved_aside(autointerp, project):
    (project / "experiment.py").write_text(source("alpha"))
    (project / "report.html").mkdir()

    said = autointerp("watch", project, "--max-experiments", 1)

    assert said.code == exit_codes.FINISHED
    assert "Report:   open" in said.out
    assert (project / "report.html").is_file()
    assert verdicts(project) == ["lead"]


def test_our_own_bug_is_a_message_and_a_file_with_the_details(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path))

    def bug() -> None:
        raise KeyError("we forgot")

    code = end_of(bug)

    said = capsys.readouterr().err
    (kept,) = tmp_path.glob("crash-*.txt")
    assert code == exit_codes.OUR_BUG
    assert "Traceback" not in said
    assert str(kept) in said
    assert "we forgot" in kept.read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_machine_that_refuses_is_no_bug(capsys, number):
    def refuse() -> None:
        raise OSError(number, os.strerror(number), "/somewhere")

    assert end_of(refuse) == exit_codes.MACHINE
    assert "/somewhere" in capsys.readouterr().err


def test_without_git_nothing_starts_and_the_message_says_how_to_get_it(autointerp, project, monkeypatch):
    monkeypatch.setenv("PATH", str(project))

    said = autointerp("watch", project)

    assert said.code == exit_codes.MACHINE
    assert "git" in said.err


def test_until_is_the_next_time_the_clock_shows_it():
    from datetime import datetime, timezone

    now = datetime(2026, 11, 22, 23, 30, tzinfo=timezone.utc)

    assert next_time("07:00", now=now) == datetime(2026, 11, 23, 7, 0, tzinfo=timezone.utc)
    assert next_time("23:45", now=now) == datetime(2026, 11, 22, 23, 45, tzinfo=timezone.utc)
    with pytest.raises(UsageError, match="HH:MM"):
        next_time("noon", now=now)


def test_what_the_command_line_does_not_say_comes_from_the_project(project):
    from datetime import datetime, timezone

    from mlxterp.autointerpret.contract import read_config

    options = merge(read_config(project), now=datetime.now(timezone.utc), hours=2.0)

    assert (options.max_experiments, options.time_per_experiment, options.seconds) == (100, 120.0, 7200.0)


@pytest.fixture
def no_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that offers no jail, and a person who has not allowed to go without."""
    monkeypatch.delenv(prepare.ALLOW_UNSANDBOXED_ENV, raising=False)
    none = Protection("none", "Landlock is switched off")
    monkeypatch.setattr(prepare, "protection", lambda: none)
    monkeypatch.setattr("mlxterp_agent.doctor.protection", lambda: none)


@pytest.mark.usefixtures("no_jail", "without_report")
@pytest.mark.parametrize(
    "command", [("start", "DIR", "--agent", "none"), ("watch", "DIR"), ("run", "DIR")], ids=lambda c: c[0]
)
def test_without_a_jail_nothing_starts_unless_it_is_allowed(autointerp, project, command):
    (project / "experiment.py").write_text(source("alpha"))
    line = [str(project) if each == "DIR" else each for each in command]
    more = [] if command[0] == "run" else ["--max-experiments", "1"]

    refused = autointerp(*line, *more)
    logged = entries(project)
    allowed = autointerp(*line, *more, "--allow-unsandboxed")

    assert refused.code == exit_codes.MACHINE
    assert "there is none: Landlock is switched off" in refused.err
    assert "--allow-unsandboxed" in refused.err
    assert logged == []
    assert allowed.code == exit_codes.FINISHED
    assert {entry.record["execution"]["isolation"] for entry in entries(project)} <= {"none"}


@pytest.mark.skipif(
    sys.platform != "linux" or protection().kind == "none", reason="needs a jail that Linux closes"
)
def test_a_jail_that_does_not_hold_stops_a_start_with_one_sentence(
    autointerp, project, tmp_path, monkeypatch, without_report
):
    ajar = tmp_path / "linux.py"
    ajar.write_text("class JailError(Exception): pass\ndef close(read, write): pass\n")
    monkeypatch.setattr("mlxterp_agent.sandbox.child.JAIL", ajar)
    (project / "experiment.py").write_text(source("alpha"))

    said = autointerp("run", project)

    assert said.code == exit_codes.MACHINE
    assert "can be read all the same" in said.err
    assert "--allow-unsandboxed" in said.err
    assert entries(project) == []


@pytest.mark.skipif(protection().kind == "none", reason="this machine has no jail")
def test_what_was_in_force_is_in_every_record_and_what_was_not_is_on_the_reports_first_screen(
    autointerp, project
):
    supervise(project, ["alpha", "crash"])
    jailed = entries(project)
    autointerp("report", project)
    before = (project / "report.md").read_text()
    (project / "experiment.py").write_text(source("beta"))
    autointerp("run", project, "--allow-unsandboxed")

    autointerp("report", project)

    assert {entry.record["execution"]["isolation"] for entry in jailed} == {protection().kind}
    assert "without a jail" not in before
    assert "1 of 3 experiments ran without a jail" in (project / "report.md").read_text()
    header = (project / "report.html").read_text().partition("<main")[0]
    assert "1 of 3 experiments ran without a jail" in re.sub(r"<[^>]+>", "", header)


def test_files_that_an_experiment_wrote_are_listed_with_its_verdict(autointerp, project):
    (project / "experiment.py").write_text("open('table.csv', 'w').write('1,2')\n" + source("alpha"))

    said = autointerp("run", project)

    assert "files: table.csv (in .autointerp/runs/0001/files)" in said.out
    assert (project / ".autointerp/runs/0001/files/table.csv").read_text() == "1,2"


def test_the_doctor_says_what_protects_a_run(autointerp, project):
    said = autointerp("doctor", project, "--json")

    found = {each["check"]: each["result"] for each in map(json.loads, said.out.splitlines())}
    assert {"jail", "git", "lock in directory", "lock in state", "disk of directory"} <= set(found)
    assert (said.code == exit_codes.FINISHED) == ("problem" not in found.values())
    assert sorted(path.name for path in project.iterdir()) == sorted(
        [".autointerp", ".gitignore", "experiment.py", "findings", "program.md", "results.jsonl", "setup.py"]
    )


@pytest.mark.usefixtures("no_jail")
def test_the_doctor_names_what_is_missing_and_ends_with_the_machines_code(
    autointerp, project, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))

    said = autointerp("doctor", project)

    assert said.code == exit_codes.MACHINE
    problems = [line for line in said.out.splitlines() if line.startswith("problem")]
    assert ["jail" in problems[0], "Landlock is switched off" in problems[0]] == [True, True]
    assert "git is not installed" in problems[1]


def test_only_a_name_of_the_hub_that_is_not_in_its_cache_is_fetched_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--somebody--there").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "directory").mkdir()
    names = ["somebody/missing", "somebody/there", "a/directory", "toy-induction", "/a/b", "x/y.gguf/z"]

    assert list(map(prepare.is_missing_from_hub_cache, names)) == [True] + 5 * [False]


def spoil_lock(project: Path, tmp_path: Path) -> list[str]:
    (state_dir(project)).mkdir(parents=True)
    (state_dir(project) / "lock").symlink_to(tmp_path / "elsewhere")
    return ["start", str(project), "--agent", "none"]


def spoil_torn(project: Path, tmp_path: Path) -> list[str]:
    (project / "results.jsonl").write_bytes(b'{"experiment_id"')
    (project / "results.jsonl.torn").mkdir()
    (project / "experiment.py").write_text(source("alpha"))
    return ["run", str(project)]


def spoil_torn_and_wait_for_edits(project: Path, tmp_path: Path) -> list[str]:
    spoil_torn(project, tmp_path)
    return ["start", str(project), "--agent", "none", "--max-experiments", "1"]


def name_below_a_file(project: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "file").touch()
    return ["start", str(tmp_path / "file" / "x"), "--agent", "none"]


def init_in_the_kernels_files(project: Path, tmp_path: Path) -> list[str]:
    return ["init", "/proc/foo"]


def state_below_a_file(project: Path, tmp_path: Path) -> list[str]:
    state_dir(project).parent.write_text("not a directory")
    return ["start", str(project), "--agent", "none"]


def state_is_a_file(project: Path, tmp_path: Path) -> list[str]:
    state_dir(project).parent.mkdir(parents=True)
    state_dir(project).write_text("not a directory")
    return ["status", str(project)]


def journal_is_a_directory(project: Path, tmp_path: Path) -> list[str]:
    (state_dir(project) / "journal.jsonl").mkdir(parents=True)
    return ["status", str(project)]


def no_such_project(project: Path, tmp_path: Path) -> list[str]:
    return ["status", str(tmp_path / "nowhere")]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (spoil_lock, 6),
        (spoil_torn, 0),
        (spoil_torn_and_wait_for_edits, 0),
        (name_below_a_file, 6),
        (init_in_the_kernels_files, 6),
        (state_below_a_file, 6),
        (state_is_a_file, 6),
        (journal_is_a_directory, 6),
        (no_such_project, 3),
    ],
)
def test_a_plain_condition_ends_with_one_sentence_and_its_code(autointerp, project, tmp_path, spoil, code):
    ended = autointerp(*spoil(project, tmp_path))

    assert ended.code == code
    assert "autointerp itself failed" not in ended.err
    assert "Traceback" not in ended.err
    assert code == 0 or ended.err.startswith("error: ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOLCK, "No locks available"),
        OSError(errno.ELOOP, "Too many levels of symbolic links", "lock"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "project"),
        OSError(errno.ENAMETOOLONG, "File name too long", "x"),
        OSError(errno.EMFILE, "Too many open files"),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_a_machine_refuses_is_one_sentence(capsys, error: Exception):
    def refuse() -> None:
        raise error

    assert exit_codes.end_of(refuse) == exit_codes.MACHINE
    assert "autointerp itself failed" not in capsys.readouterr().err

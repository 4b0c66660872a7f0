"""Notices: who is told of what, and that nobody who is told can harm a run."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent import exit_codes
from mlxterp_agent.cli import app
from mlxterp_agent.display import notify as notices
from mlxterp_agent.display.notify import (
    Notice,
    Notices,
    Target,
    targets_of,
)
from mlxterp_agent.events import (
    Committed,
    Decided,
    Event,
    Progress,
    Repaired,
    Running,
    SetupReady,
    Spending,
    Started,
    Stopped,
    Turn,
    Violated,
    Waiting,
)
from mlxterp_agent.exit_codes import UsageError, end_of
from mlxterp_agent.researchers.base import BudgetState
from tests.agent.fakes import source, verdicts

DESKTOP = "osascript" if sys.platform == "darwin" else "notify-send"
STARTED = Started("/p", "Why?", "m", "scripted")
STOPPED = Stopped("the budget of 40 experiments is used up", 0)


class Webhook(NamedTuple):
    path: str
    body: dict[str, Any]


class Server(ThreadingHTTPServer):
    """Takes every POST and answers `status`; while `held`, it does not answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: queue.Queue[Webhook] = queue.Queue()
        self.status, self.location = 200, ""
        self.answers = threading.Event()
        self.answers.set()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def everything(self) -> list[Webhook]:
        return [self.asked.get_nowait() for _ in range(self.asked.qsize())]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.put(Webhook(self.path, body))
        self.server.answers.wait(30)
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.put(Webhook(self.path, {}))
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    notices._client.cache_clear()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.answers.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of the desktop's name in the place of PATH; it writes its arguments to this file, one a
    line."""
    told, program = tmp_path / "told", tmp_path / "bin" / DESKTOP
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{told}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return told


def play(targets: tuple[Target, ...], *events: Event) -> list[Event]:
    """What the screen is shown of these events."""
    shown: list[Event] = []
    with Notices(shown.append, targets, project="induction") as emit:
        for event in events:
            emit(event)
    return shown


def complaints(shown: list[Event]) -> list[str]:
    return [event.text for event in shown if isinstance(event, Waiting)]


def decided(tier: str | None, *, verdict: str = "", kept: bool = True, conclusion: str = "c") -> Decided:
    record = {"tier": tier, "verdict": verdict or tier}
    return Decided(
        ExperimentEntry(
            hypothesis="h",
            method="m",
            result={},
            informative=kept,
            conclusion=conclusion,
            duration_seconds=1.0,
            experiment_id="0007",
            record=record,
        )
    )


def test_only_what_is_worth_a_look_is_sent(server):
    shown = play(
        targets_of([server.url]),
        STARTED,
        Repaired("a torn line"),
        Progress("fetching"),
        SetupReady("m", 1.0),
        Turn("writing"),
        Running(1, "ab" * 32, 9.0),
        decided("lead"),
        decided("note"),
        decided(None, verdict="invalid"),
        decided("finding", kept=False),
        decided("finding", conclusion="head 1.4 copies"),
        Committed("0007", "cd" * 20),
        decided("claim"),
        decided("retracted"),
        Waiting("git: busy"),
        Spending(BudgetState(experiments=1, experiments_left=9)),
        Spending(BudgetState(experiments=8, experiments_left=2)),
        Violated("setup.py was changed"),
        STOPPED,
    )

    sent = [asked.body for asked in server.everything()]
    assert len(shown) == 19
    assert [body["kind"] for body in sent] == [
        "finding",
        "finding",
        "retraction",
        "budget",
        "violation",
        "stopped",
    ]
    assert sent[0] == {
        "title": "autointerp: finding 0007 (induction)",
        "text": "head 1.4 copies",
        "project": "induction",
        "kind": "finding",
    }
    assert sent[3]["text"] == "8 experiments of 10 experiments"
    assert sent[-1]["text"] == "the budget of 40 experiments is used up"


def test_the_budget_is_sent_once_and_not_when_it_was_short_before_the_start(server):
    play(
        targets_of([server.url]),
        Spending(BudgetState(experiments=9, experiments_left=1, usd=0.0, usd_left=5.0)),
        Spending(BudgetState(experiments=9, experiments_left=1, usd=3.99, usd_left=1.01)),
        Spending(BudgetState(experiments=9, experiments_left=1, usd=4.00, usd_left=1.00)),
        Spending(BudgetState(experiments=9, experiments_left=1, usd=4.50, usd_left=0.50)),
    )

    assert [asked.body["text"] for asked in server.everything()] == ["$4.00 of $5.00"]


def test_time_runs_short_without_any_event(server):
    with Notices(lambda _: None, targets_of([server.url]), project="p") as emit:
        emit(Spending(BudgetState(seconds=7.9, seconds_left=2.1)))
        told = server.asked.get(timeout=20)

    assert told.body["kind"] == "budget"
    assert told.body["text"] == "8.0 s of 10 s"


def test_ntfy_gets_its_topic_at_the_root_of_its_server(server):
    play(targets_of([f"ntfy:{server.url}/my-topic?auth=abc"]), STARTED, STOPPED)

    assert server.everything() == [
        Webhook(
            "/?auth=abc",
            {
                "topic": "my-topic",
                "title": "autointerp: stopped (induction)",
                "message": "the budget of 40 experiments is used up",
            },
        )
    ]


def test_the_desktop_program_gets_plain_words_as_arguments_and_never_a_shell(desktop, tmp_path):
    text = f"--help $(touch {tmp_path}/pwned) `id` \x1b[31mred\x1b[0m <b>bold</b>\nsecond line"

    shown = play(targets_of(["desktop"]), STARTED, decided("finding", conclusion=text))

    *_, before, title, body = desktop.read_text().splitlines()
    escaped = text if sys.platform == "darwin" else text.replace("<", "&lt;").replace(">", "&gt;")
    assert before == ("end run" if sys.platform == "darwin" else "--")
    assert title == "autointerp: finding 0007 (induction)"
    assert body == escaped.replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\n", " ")
    assert not (tmp_path / "pwned").exists()
    assert complaints(shown) == []


def test_a_machine_without_desktop_notices_shows_it_once_and_the_run_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    shown = play(targets_of(["desktop"]), STARTED, decided("finding"), Violated("x"), STOPPED)

    assert len(complaints(shown)) == 1
    assert f"there is no {DESKTOP} here" in complaints(shown)[0]
    assert shown[-1] == STOPPED


def test_a_desktop_program_that_fails_is_quoted(desktop, tmp_path):
    (tmp_path / "bin" / DESKTOP).write_text("#!/bin/sh\necho 'cannot open display' >&2\nexit 3\n")

    shown = play(targets_of(["desktop"]), STARTED, STOPPED)

    assert f"{DESKTOP} ended with 3: cannot open display" in complaints(shown)[0]


def test_a_refusing_server_is_named_once_by_its_host_only_and_the_others_get_theirs(server, desktop):
    server.status = 500
    targets = targets_of([f"{server.url}/services/s3cr3t-token", "desktop"])

    shown = play(targets, STARTED, decided("finding"), Violated("x"), STOPPED)

    assert len(server.everything()) == 3
    assert len(complaints(shown)) == 1
    assert "the webhook at 127.0.0.1 was not delivered (it answered 500)" in complaints(shown)[0]
    assert "s3cr3t" not in complaints(shown)[0]
    assert desktop.read_text().count("autointerp: ") == 3


def test_a_server_that_is_not_there_is_a_complaint(server):
    port = Server()
    port.server_close()

    shown = play(targets_of([port.url]), STARTED, STOPPED)

    assert "refused" in complaints(shown)[0]


@pytest.mark.parametrize("location", ["/elsewhere", "file:///etc/passwd", "ftp://127.0.0.1/x"])
@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_is_not_followed(server, location, status):
    server.status, server.location = status, location

    shown = play(targets_of([server.url]), STARTED, STOPPED)

    assert [asked.path for asked in server.everything()] == ["/"]
    assert "redirects are not followed" in complaints(shown)[0]


def test_a_server_that_never_answers_holds_the_end_up_for_no_longer_than_the_flush(server, monkeypatch):
    monkeypatch.setattr(notices, "FLUSH", 0.2)
    server.answers.clear()
    began = time.monotonic()

    shown = play(targets_of([server.url]), STARTED, Violated("x"), STOPPED)

    assert 0.2 <= time.monotonic() - began < 1.5
    assert "did not answer within 0.20 s" in complaints(shown)[0]


def test_a_slow_target_loses_the_oldest_notices_and_never_the_last():
    go, sent = threading.Event(), list[Notice]()

    def slow(notice: Notice) -> None:
        go.wait(20)
        sent.append(notice)

    shown: list[Event] = []
    with Notices(shown.append, (Target("a slow one", slow),), project="p") as emit:
        for number in range(100):
            emit(Violated(str(number)))
        emit(STOPPED)
        go.set()

    assert len(sent) <= 18
    assert sent[-1].kind == "stopped"
    assert complaints(shown) == [
        "a notice to a slow one was not delivered (it is too slow); the run goes on, and further failures "
        "there are not shown"
    ]


def test_an_error_that_ends_a_run_is_sent_too(server):
    def run() -> None:
        with Notices(lambda _: None, targets_of([server.url]), project="p") as emit:
            emit(STARTED)
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run()

    assert [(asked.body["kind"], asked.body["text"]) for asked in server.everything()] == [
        ("stopped", "no space left")
    ]


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "desk",
        "file:///etc/passwd",
        "ftp://host/x",
        "http://",
        "https://host:port/",
        "http://host/a b",
        "http://host/ü",
        "https://me:secret@host/",
        "ntfy:",
        "ntfy:two words",
        "ntfy:https://host/",
        "ntfy:https://host/a/b",
        "ntfy:file:///etc/passwd",
    ],
)
def test_a_target_that_means_nothing_is_refused_before_anything_starts(asked, tmp_path):
    with pytest.raises(UsageError, match="--notify") as refused:
        targets_of([asked])

    assert "secret" not in str(refused.value)
    assert end_of(lambda: app(["start", str(tmp_path / "new"), "--notify", asked])) == exit_codes.USAGE
    assert not (tmp_path / "new").exists()


def test_a_real_run_notifies_of_a_violation_and_of_its_end_and_remembers_no_target(
    server, project, tmp_path, monkeypatch, capsys
):
    from mlxterp_agent.supervisor import report_process as reporting

    monkeypatch.setattr(reporting, "refresh_report", lambda directory, *, wait: None)
    (project / "experiment.py").write_text(source("edits-setup"))
    hook = f"{server.url}/s3cr3t-token"

    code = end_of(
        lambda: app(
            ["watch", str(project), "--max-experiments", "1", "--allow-unsandboxed", "--notify", hook]
        )
    )

    capsys.readouterr()
    sent = server.everything()
    assert code == exit_codes.FINISHED
    assert [asked.body["kind"] for asked in sent] == ["violation", "stopped"]
    assert sent[0].body["project"] == project.name
    assert verdicts(project) == ["invalid:contract"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"s3cr3t" in path.read_bytes()] == []

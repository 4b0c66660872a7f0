"""Claude Code as the researcher: what follows from how its process ends, what it may do, what it costs.

The first part runs a program that stands in for `claude`. The second, marked `claude`, runs the real program
against a script of the Messages API on loopback; it may not be skipped where CI is "true".
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from mlxterp_agent import exit_codes
from mlxterp_agent.display.terminal import LiveScreen
from mlxterp_agent.events import Event, Spending, Turn
from mlxterp_agent.exit_codes import Ended, ResearcherUnavailable
from mlxterp_agent.key_broker import Credentials, KeyBroker, Used
from mlxterp_agent.platform import Clock, FakeClock, take_keys
from mlxterp_agent.researchers.base import (
    BudgetState,
    Done,
    Failed,
    Idle,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.researchers.claude_code import (
    ClaudeCode,
    ClaudeOptions,
    prompt,
    settings,
)
from mlxterp_agent.researchers.claude_events import Stream
from mlxterp_agent.researchers.select import choose, find_claude
from mlxterp_agent.run_config import Options
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import ROOT, entries, git, source
from tests.agent.researchers.fake_claude import (
    BEGIN,
    Action,
    FakeClaude,
    asks,
    ends,
    gets,
    limited,
    used,
)
from tests.messages_stub import MessagesStub

RUN = "mcp__autointerp__run_experiment"
PINNED = "@anthropic-ai/claude-code-linux-x64@2.1.330"
"""As in `.ci/run`."""


def situation(project: Path, charges: list[tuple[float | None, int | None]], **more: Any) -> Situation:
    def charge(usd: float | None, tokens: int | None, **_: Any) -> None:
        charges.append((usd, tokens))

    fields = {"budget": BudgetState(experiments_left=5), "entries": [], "last": None, **more}
    fields["budget_now"] = lambda: fields["budget"]
    return Situation(project=project, charge=charge, **fields)


class FakedClaude:
    """The researcher with a program that stands in for `claude`, outside a supervisor."""

    def __init__(self, project: Path, plays: list[list[Action]], clock: Clock | None, **options: Any) -> None:
        self.project = project
        self.program = FakeClaude(project.parent / "bin", plays)
        chosen = {name: options.pop(name) for name in ("turns", "model", "shell") if name in options}
        self.researcher = ClaudeCode(
            ClaudeOptions(binary=self.program.path, **chosen), clock=clock, **options
        )
        self.charges: list[tuple[float | None, int | None]] = []

    def begin(self, **more: Any) -> None:
        self.researcher.begin_turn(situation(self.project, self.charges, **more))

    def until(self, arrived: Callable[[ResearcherState], bool], *, seconds: float = 20.0) -> ResearcherState:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.researcher.poll()
            if arrived(state):
                return state
            time.sleep(0.02)
        raise AssertionError(f"it stayed {self.researcher.poll()}")

    def through(self) -> ResearcherState:
        return self.until(lambda state: not isinstance(state, Working))


@pytest.fixture
def faked(project: Path) -> Iterator[Callable[..., FakedClaude]]:
    made: list[FakedClaude] = []

    def make(*plays: list[Action], clock: Clock | None = None, **options: Any) -> FakedClaude:
        made.append(FakedClaude(project, list(plays), clock, **options))
        return made[-1]

    yield make
    for each in made:
        each.researcher.close()


def waits(state: ResearcherState) -> bool:
    return isinstance(state, Working) and state.doing.startswith("waits ")


def supervise(project: Path, researcher: ClaudeCode, **limits: Any) -> tuple[Ended, list[Event]]:
    events: list[Event] = []
    return run(project, researcher, Options(**limits), events.append), events


# --- turns -----------------------------------------------------------------------------------------------


def test_experiment_py_runs_when_the_agent_asks_for_it_and_not_half_written(project, faked):
    path = str(project / "experiment.py")
    halves = [("write", [path, source("alpha")]), asks("Edit", {"file_path": path}), ("sleep", 0.7), gets()]
    whole = [("write", [path, source("beta")]), asks(RUN), ("entries", 1), gets(), ends()]
    each = faked([BEGIN, *halves, *whole])

    ended, _ = supervise(project, each.researcher, max_experiments=1)

    assert ended.exit_code == exit_codes.FINISHED
    assert [entry.hypothesis for entry in entries(project)] == ["beta holds"]


def test_i_am_done_is_sent_back_while_budget_remains_and_an_idle_agent_is_let_go(project, faked):
    each = faked([BEGIN, ends()])

    ended, _ = supervise(project, each.researcher, max_experiments=5)

    first, *later = each.program.calls
    assert "budget remains" in later[0].prompt
    assert "without a new experiment" not in first.prompt
    assert len(later) == 2
    assert ended == Ended(
        "nothing is left to try: 3 turns in a row brought no new experiment",
        exit_codes.FINISHED,
        "nothing_new",
    )


def test_each_turn_begins_a_conversation_unless_one_conversation_is_asked_for(faked):
    fresh, kept = faked([BEGIN, ends()]), faked([BEGIN, ends()], turns="resumed")
    for each in (fresh, kept):
        for _ in range(2):
            each.begin()
            each.through()

    assert len({call.session for call in fresh.program.calls[:2]}) == 2
    assert kept.program.calls[-1].option("--resume") == kept.program.calls[-2].session


@pytest.mark.slow
def test_the_live_screen_shows_what_the_agent_does(project, faked):
    path = str(project / "program.md")
    each = faked([BEGIN, asks("Read", {"file_path": path}), ("sleep", 0.6), gets(), ends()])

    _, events = supervise(project, each.researcher)

    assert Turn("reads program.md") in events


def test_the_last_result_ends_a_turn_and_then_the_process(faked):
    each = faked([BEGIN, ends(usd=0.1), ends(usd=0.3), ("deaf", None), ("sleep", 60)], linger=0.3)
    each.begin()

    assert each.through() == Idle()
    assert _gone(each.program.calls[0].pid)
    assert sum(usd or 0.0 for usd, _ in each.charges) == pytest.approx(0.3)


# --- processes that are lost -----------------------------------------------------------------------------


def test_a_process_killed_midway_is_resumed(faked):
    each = faked([BEGIN, asks("Read"), ("die", signal.SIGKILL)], [BEGIN, ends()])
    each.begin()

    assert each.through() == Idle()
    first, second = each.program.calls
    assert second.option("--resume") == first.session


@pytest.mark.slow
def test_a_silent_process_is_ended_and_resumed(faked):
    each = faked([BEGIN, ("sleep", 60)], [BEGIN, ends()], silence=2.0)
    each.begin()

    assert each.through() == Idle()
    assert _gone(each.program.calls[0].pid)
    assert each.program.calls[1].option("--resume") == each.program.calls[0].session


@pytest.mark.slow
def test_a_long_experiment_is_no_silence(faked):
    each = faked([BEGIN, asks(RUN), ("sleep", 3.0), gets(), ends()], silence=2.0)
    each.begin()

    assert each.through() == Idle()
    assert len(each.program.calls) == 1


def test_a_process_that_never_begins_is_tried_in_a_new_conversation_and_then_given_up(faked):
    clock = FakeClock()
    each = faked([("complain", "no such conversation"), ("die", signal.SIGTERM)], clock=clock)
    each.begin()

    def forward(state: ResearcherState) -> bool:
        clock.advance(30.0)
        return not isinstance(state, Working)

    state = each.until(forward)

    assert isinstance(state, Failed)
    assert "no such conversation" in state.reason
    assert len(each.program.calls) == 6
    assert not any(call.option("--resume") for call in each.program.calls)


def test_close_ends_the_process_and_what_it_started_within_two_seconds(faked):
    each = faked([BEGIN, ("deaf", None), ("spawn", None), asks("Read"), ("sleep", 60)])
    each.begin()
    each.until(lambda state: isinstance(state, Working) and "reads" in state.doing)
    family = psutil.Process(each.program.calls[0].pid)
    others = family.children(recursive=True)
    assert others

    began = time.monotonic()
    each.researcher.close()

    assert time.monotonic() - began < 2.0
    assert all(_gone(process.pid) for process in (family, *others))


def test_an_agent_does_not_outlive_a_supervisor_that_was_killed(project, tmp_path):
    program = FakeClaude(tmp_path / "bin", [[BEGIN, ("sleep", 60)]])
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "mlxterp_agent.cli", "start", str(project), "--agent", "claude"],
        env={**os.environ, "AUTOINTERP_CLAUDE": program.path},
        stdout=subprocess.DEVNULL,
    )
    end = time.monotonic() + 30
    while not program.calls and time.monotonic() < end:
        time.sleep(0.05)
    supervisor.kill()
    supervisor.wait()
    while not _gone(program.calls[0].pid) and time.monotonic() < end:
        time.sleep(0.05)

    assert _gone(program.calls[0].pid)


def _gone(pid: int) -> bool:
    """Whether a process has ended, or does within a second: a signal takes its time to arrive. Whose it was
    may not have asked for its exit code yet."""
    for _ in range(50):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


# --- a service that refuses ------------------------------------------------------------------------------


def test_a_rate_limit_of_an_hour_is_waited_out_and_then_the_conversation_goes_on(faked):
    clock, notes = FakeClock(), list[str]()
    each = faked([BEGIN, *limited(resets_at=clock.wall() + 3600)], [BEGIN, ends()], clock=clock)
    each.begin(note=notes.append)

    state = each.until(waits)
    clock.advance(3590)
    assert waits(each.researcher.poll())
    assert len(each.program.calls) == 1
    clock.advance(20)

    assert notes == [state.doing]
    assert "1 h" in notes[0]
    assert each.through() == Idle()
    assert each.program.calls[1].option("--resume") == each.program.calls[0].session


def test_no_rate_limit_is_waited_out_past_the_end_of_the_budget(faked):
    clock = FakeClock()
    each = faked([BEGIN, *limited(resets_at=clock.wall() + 3600)], clock=clock)
    each.begin(deadline_left=1800.0)

    state = each.through()

    assert isinstance(state, Done)
    assert "the time is up before" in state.reason


def test_an_option_that_an_old_client_does_not_know_ends_the_run_at_once(project, faked):
    each = faked([("complain", "error: unknown option '--setting-sources'")])

    ended, _ = supervise(project, each.researcher)

    assert (ended.ending, ended.exit_code) == ("old_client", exit_codes.RESEARCHER)
    assert "update Claude Code" in ended.reason
    assert len(each.program.calls) == 1


def test_until_wins_over_waiting(project, faked):
    each = faked([BEGIN, *limited()])

    ended, _ = supervise(project, each.researcher, until=time.time() + 6.0)

    assert (ended.exit_code, ended.ending) == (exit_codes.RESEARCHER, "service")  # it never answered
    assert len(each.program.calls) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(401, "invalid x-api-key"), (404, "no such model"), (400, "bad request")]
)
def test_a_request_that_no_waiting_changes_ends_the_run_with_the_words_of_the_service(
    project, faked, status, words
):
    each = faked([BEGIN, ends(why="api_error", api_error_status=status, result=words)])

    ended, _ = supervise(project, each.researcher)

    assert ended.exit_code == exit_codes.RESEARCHER
    assert words in ended.reason
    assert len(each.program.calls) == 1


# --- money -----------------------------------------------------------------------------------------------


def test_dollars_of_a_resumed_session_are_charged_once(faked):
    each = faked([BEGIN, ends(usd=0.10)], [BEGIN, ends(usd=0.25)], turns="resumed")
    for _ in range(2):
        each.begin()
        each.through()

    assert [usd for usd, _ in each.charges] == [pytest.approx(0.10), pytest.approx(0.15)]


def test_a_turn_is_charged_by_our_prices_while_it_runs_and_by_its_own_words_at_the_end(faked):
    each = faked([BEGIN, *used(1_000_000, 20), ("sleep", 0.5), ends(usd=4.5, tokens=1_000_020)])
    each.begin()
    each.through()

    usd, tokens = zip(*each.charges, strict=True)
    assert usd[0] == pytest.approx(4.0, abs=0.01)
    assert sum(usd) == pytest.approx(4.5)
    assert sum(tokens) == 1_000_020


def test_what_a_killed_process_has_used_is_charged_beside_the_session_that_goes_on(faked):
    lost = [BEGIN, *used(500_000, 10), asks("Read"), ("die", signal.SIGKILL)]
    each = faked(lost, [BEGIN, ends(usd=1.0, tokens=100)])
    each.begin()
    each.through()

    assert sum(usd or 0.0 for usd, _ in each.charges) == pytest.approx(3.0, abs=0.01)


def test_the_process_gets_a_token_of_the_run_and_what_goes_past_it_is_charged(faked, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary-4711")
    monkeypatch.setenv("GITHUB_TOKEN", "canary-4711")
    broker = KeyBroker(Credentials(take_keys(), "http://127.0.0.1:9"))
    claude = faked([BEGIN, *used(1000, 100), ends(usd=0.006, tokens=1100)], broker=broker)

    claude.begin()
    broker.used = Used(usd=0.5, tokens=9000)  # as if the shell of the agent had asked too
    claude.through()

    (call,) = claude.program.calls
    assert call.environment["ANTHROPIC_API_KEY"] == broker.token
    assert "canary-4711" not in str(call)
    assert sum(usd or 0.0 for usd, _ in claude.charges) == pytest.approx(0.5)
    assert sum(tokens or 0 for _, tokens in claude.charges) == 9000


def test_a_turn_may_cost_no_more_than_is_left(faked):
    each = faked([BEGIN, ends(usd=0.5)])
    each.begin(budget=BudgetState(usd=1.0, usd_left=0.75))

    each.through()

    assert each.program.calls[0].option("--max-budget-usd") == "0.7500"


def test_the_live_screen_shows_what_it_cost_so_far_also_without_a_limit():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    screen = LiveScreen(console)

    screen(Spending(BudgetState(usd=1.239, tokens=51_000)))
    console.print(screen.picture())
    screen.close()

    assert "$1.24 for 51,000 tokens" in console.file.getvalue()  # type: ignore[attr-defined]


# --- what it may do --------------------------------------------------------------------------------------


def test_without_a_shell_only_experiment_py_may_be_written(project, faked):
    each = faked([BEGIN, ends()])
    each.begin()
    each.through()
    call = each.program.calls[0]

    assert call.option("--tools") == "Read,Edit,Write,Glob,Grep"
    assert call.option("--permission-mode") == "dontAsk"
    assert "--strict-mcp-config" in call.argv
    allowed = json.loads(call.option("--settings") or "")["permissions"]["allow"]
    assert [rule for rule in allowed if not rule.startswith("Read(")] == [
        f"Edit(/{project.resolve()}/experiment.py)",
        "mcp__autointerp",
    ]


def test_the_prompt_says_what_the_loaded_model_has(tmp_path):
    facts = {"size": "n_layers 2, n_heads 4", "capabilities": "z; missing: mlp_out (a block has no MLP)"}

    text = prompt(Situation(tmp_path, [], BudgetState(), None, facts=facts))

    assert "n_layers 2, n_heads 4. It has z; missing: mlp_out (a block has no MLP)" in text


def test_the_prompt_has_signatures_and_the_values_that_they_take(tmp_path):
    text = prompt(Situation(tmp_path, [], BudgetState(), None, facts={"metrics": ["logit_diff", "prob"]}))

    assert "mlxterp.causal.activation_patching(model: InterpretableModel, clean: Prompt | Pairs" in text
    assert "- by: 'layer', 'layer_pos', 'layer_head', 'layer_pos_head'" in text
    assert "- metric: 'logit_diff', 'prob', as setup.py's" in text
    assert "'denoising' (clean into corrupted)" in text
    assert len(text.encode()) < 8_000


def test_a_shell_is_opted_into_and_may_not_rewrite_history():
    assert "Bash" in settings(Path("/x"), shell=True)["permissions"]["allow"]
    assert "Bash(git *--amend*)" in settings(Path("/x"), shell=True)["permissions"]["deny"]


def test_what_the_program_does_not_know_changes_nothing():
    stream = Stream()

    for line in (
        b"",
        b"not json",
        b"[]",
        b'{"type": 3}',
        b'{"type": "assistant", "message": {"content": 1}}',
    ):
        stream.take(line)

    assert stream.doing == "starts"
    assert stream.result is None


# --- who is chosen ---------------------------------------------------------------------------------------

LOGGED_IN = '#!/bin/sh\n[ "$1 $2" = "auth status" ] && echo "{{}}" && exit {code}\n'


@pytest.fixture
def only_claude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """PATH holds a `claude` that says whether it is logged in, or none."""

    def there(code: int | None) -> None:
        folder = tmp_path / "path"
        folder.mkdir()
        if code is not None:
            (folder / "claude").write_text(LOGGED_IN.format(code=code))
            (folder / "claude").chmod(0o755)
        for name in ("AUTOINTERP_CLAUDE", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PATH", str(folder))

    return there


@pytest.mark.parametrize(
    ("code", "name", "why"),
    [(0, "claude-code", "logged in"), (1, "scripted", "not logged in"), (None, "scripted", "claude")],
)
def test_auto_takes_claude_if_it_can_be_used_and_says_why(only_claude, code, name, why):
    only_claude(code)

    choice = choose("auto")

    assert choice.researcher.name == name
    assert why in choice.description


@pytest.mark.parametrize(("code", "words"), [(None, "not on PATH"), (1, "not logged in")])
def test_claude_asked_for_by_name_says_what_is_missing(only_claude, code, words):
    only_claude(code)

    with pytest.raises(ResearcherUnavailable, match=words):
        choose("claude")


# --- the real program ------------------------------------------------------------------------------------

EXPERIMENT = '''"""{about}"""

import os

from setup import dataset, model

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.causal import activation_patching

result = activation_patching(model, dataset, component="{component}", by="{by}", metric="logit_diff")
top = result.top_components(1)[0]
keys = [name for name, value in os.environ.items() if "stub-0000" in value]
ExperimentLog("results.jsonl").append(
    ExperimentEntry(
        hypothesis="{component} carries the answer",
        method="activation_patching",
        result={{"numbers": {{"top": top.effect, "others": {number}.5}}}},
        informative=True,
        conclusion=f"{{top.label}} recovers {{top.effect:.2f}}; keys: {{keys}}",
        duration_seconds=1.0,
    )
)
'''


def asked_for(component: str, by: str, number: int) -> str:
    return EXPERIMENT.format(about=f"Is it {component} by {by}?", component=component, by=by, number=number)


@pytest.fixture(scope="session")
def claude() -> str:
    """The real program, of the pinned version where `.ci/run` put it."""
    there = os.environ.get("AUTOINTERP_TEST_CLAUDE") or _pinned() or find_claude()
    if there is None:
        why = f"no Claude Code program; `npm install --prefix .venv/claude {PINNED}` brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return there


def _pinned() -> str | None:
    there = sorted((ROOT / ".venv" / "claude" / "node_modules").glob("@anthropic-ai/claude-code-*/claude"))
    return str(there[0]) if there else None


class Bench:
    """A new investigation of the toy model, and an environment in which the real program reaches the stub
    only."""

    def __init__(self, folder: Path, claude: str) -> None:
        self.project = folder / "investigation"
        self.claude = claude
        self._folder = folder
        (folder / "home").mkdir()

    def environment(self, stub: MessagesStub) -> dict[str, str]:
        scripts = os.path.dirname(sys.executable)
        return {
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "HOME": str(self._folder / "home"),
            "LANG": "C.UTF-8",
            "CLAUDE_CONFIG_DIR": str(self._folder / "config"),
            "DISABLE_TELEMETRY": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_MAX_RETRIES": "1",
            "ANTHROPIC_BASE_URL": stub.url,
            "ANTHROPIC_API_KEY": stub.key,
            "AUTOINTERP_CLAUDE": self.claude,
            "AUTOINTERP_STATE_DIR": str(self._folder / "state"),
        }

    def autointerp(self, stub: MessagesStub, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mlxterp_agent.cli", *arguments],
            cwd=self._folder,
            env=self.environment(stub),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finished(self, stub: MessagesStub, *arguments: str) -> str:
        said, _ = self.autointerp(stub, *arguments).communicate(timeout=200)
        return said

    def start(self, stub: MessagesStub, *more: str) -> str:
        arguments = ("--scaffold", "induction", "--agent", "claude", *more)
        return self.finished(stub, "start", str(self.project), *arguments)

    def reads(self, name: str) -> dict[str, Any]:
        return {"tool": "Read", "input": {"file_path": str(self.project / name)}}

    def writes(self, name: str, content: str) -> dict[str, Any]:
        return {"tool": "Write", "input": {"file_path": str(self.project / name), "content": content}}

    def edits_setup(self) -> dict[str, Any]:
        change = {"old_string": "import", "new_string": "import os, ", "replace_all": True}
        return {"tool": "Edit", "input": {"file_path": str(self.project / "setup.py"), **change}}


def playing(steps: list[dict[str, Any]]) -> MessagesStub:
    """A service that plays the steps and has nothing to say afterwards."""
    return MessagesStub({"lanes": [{"turns": steps, "then": {"text": "Nothing more."}}]})


def shell(command: str) -> dict[str, Any]:
    return {"tool": "Bash", "input": {"command": command, "description": "a command"}}


@pytest.fixture
def bench(tmp_path: Path, claude: str) -> Bench:
    return Bench(tmp_path, claude)


REAL = [pytest.mark.slow, pytest.mark.claude]
RUNS = {"tool": RUN, "input": {}}


def real(test: Any) -> Any:
    for mark in REAL:
        test = mark(test)
    return test


@real
def test_the_real_program_investigates_to_the_end_of_its_budget(bench):
    experiments = [
        asked_for("attn", "layer", 1),
        asked_for("resid_pre", "layer", 2),
        asked_for("z", "layer_head", 3),
    ]
    refused = {"expect": {"last_is_error": True}}
    steps = [
        bench.reads("experiment.py"),
        bench.writes("experiment.py", experiments[0]),
        RUNS,
        {"text": "I am done.", "expect": {"last_result_has": "0001 lead"}},
        {**bench.reads("experiment.py"), "expect": {"last_user_has": "Budget: 1 experiments, 2 left"}},
        bench.reads("setup.py"),
        bench.edits_setup(),
        {**shell("git commit --amend -m mine"), **refused},
        {**bench.writes("experiment.py", experiments[1]), **refused},
        RUNS,
        {**bench.writes("experiment.py", experiments[2]), "expect": {"last_result_has": "0002 lead"}},
        RUNS,
    ]
    with playing(steps) as stub:
        said = bench.start(stub, "--max-experiments", "3")
        failures, probes = stub.failures, stub.probes

    assert "the budget of 3 experiments is used up" in said
    assert failures == []
    assert probes == []
    assert len(entries(bench.project)) == 3
    assert all((entry.record or {})["driver"]["name"] == "claude-code" for entry in entries(bench.project))
    assert all("keys: []" in entry.conclusion for entry in entries(bench.project))
    assert "Autointerp-Id: 0001" in git(bench.project, "log") or "0001 lead" in git(bench.project, "log")
    assert (bench.project / "report.html").is_file()


@real
def test_the_real_program_is_steered_within_a_turn_and_writes_no_other_experiment(bench):
    refused = {"expect": {"last_is_error": True}}
    first, second = (
        asked_for("attn", "layer", 1),
        asked_for("z", "layer_head", 2) + "import time; time.sleep(4)\n",
    )
    steps = [
        bench.reads("experiment.py"),
        bench.writes("sub/experiment.py", first),
        {**bench.writes("EXPERIMENT.PY", first), **refused},
        bench.writes("experiment.py", first),  # the program's permissions ignore case: the supervisor acts
        RUNS,
        {**bench.writes("experiment.py", second), "expect": {"last_result_has": "0001 lead"}},
        RUNS,
        {**RUNS, "expect": {"last_user_has": "Look at layer 3."}},
        {"text": "I am done.", "expect": {"last_result_has": "not run: these bytes ran before as 0002"}},
    ]

    def steer() -> None:
        until = time.monotonic() + 150
        while time.monotonic() < until and not (bench.project / ".autointerp" / "runs" / "0002").exists():
            time.sleep(0.1)
        (bench.project / "steer.md").write_text("Look at layer 3.\n")

    person = threading.Thread(target=steer)
    person.start()
    with playing(steps) as stub:
        bench.start(stub, "--max-experiments", "3")
        failures = stub.failures
    person.join()

    assert failures == []
    assert not (bench.project / "sub").exists()
    assert sorted(each.name for each in bench.project.iterdir() if each.name.lower() == "experiment.py") == [
        "experiment.py"
    ]
    assert len(entries(bench.project)) == 2


@real
def test_the_real_program_with_a_shell_may_not_rewrite_history(bench):
    steps = [
        shell("git -C . commit -m mine --amend --allow-empty"),
        {**shell("python3 -c \"open('setup.py', 'a').write('x = 1')\""), "expect": {"last_is_error": True}},
        {**bench.reads("experiment.py"), "expect": {"last_is_error": True}},
        bench.writes("experiment.py", asked_for("attn", "layer", 1)),
        shell("autointerp run"),
        {"text": "done", "expect": {"last_result_has": "0001 lead"}},
    ]
    with playing(steps) as stub:
        said = bench.start(stub, "--max-experiments", "1", "--agent-shell")
        failures = stub.failures

    assert "the budget of 1 experiments is used up" in said
    assert failures == []
    assert git(bench.project, "rev-list", "--count", "HEAD") == "2"


@real
def test_the_real_program_opened_by_hand_works_from_the_files_of_the_scaffold_alone(bench):
    steps = [
        {**bench.reads("experiment.py"), "expect": {"messages_have": ["start investigating", "# Program"]}},
        bench.writes("experiment.py", asked_for("attn", "layer", 1)),
        RUNS,
        {"text": "I am done.", "expect": {"last_result_has": "0001 lead"}},
        {**bench.reads("setup.py"), "expect": {"last_user_has": "1 experiments are left"}},
        bench.edits_setup(),
        {**shell("git -C . commit -m mine --amend"), "expect": {"last_is_error": True}},
        {**shell("python3 -c \"open('setup.py', 'a').write('x = 1')\""), "expect": {"last_is_error": True}},
        {**bench.writes("experiment.py", asked_for("z", "layer_head", 2)), "expect": {"last_is_error": True}},
        shell("autointerp run"),
        {"text": "The budget is used up.", "expect": {"last_result_has": "0002 lead"}},
    ]
    with MessagesStub(steps) as stub:
        bench.finished(stub, "init", str(bench.project), "--scaffold", "induction", "--max-experiments", "2")
        before = (bench.project / "setup.py").read_bytes()
        ended = subprocess.run(
            [bench.claude, "-p", "Read program.md and start investigating."],
            cwd=bench.project,
            env=bench.environment(stub),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
        failures = stub.failures

    assert failures == []
    assert ended.stdout.strip() == "The budget is used up."
    assert (bench.project / "setup.py").read_bytes() == before
    assert ["keys: []" in entry.conclusion for entry in entries(bench.project)] == [True, True]
    assert git(bench.project, "rev-list", "--count", "HEAD") == "3"


@real
def test_the_real_program_killed_midway_resumes_its_conversation(bench):
    steps = [
        bench.reads("experiment.py"),
        {"text": "never read", "hang": 60},
        {
            **bench.writes("experiment.py", asked_for("attn", "layer", 1)),
            "expect": {"messages_have": ["Read program.md and STATE.md", "your last turn was interrupted"]},
        },
        RUNS,
    ]
    with playing(steps) as stub:
        arguments = ("--scaffold", "induction", "--agent", "claude", "--max-experiments", "1")
        supervisor = bench.autointerp(stub, "start", str(bench.project), *arguments)
        end = time.monotonic() + 60
        while len(stub.requests) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        (process,) = [
            child
            for child in psutil.Process(supervisor.pid).children(recursive=True)
            if child.exe() == os.path.realpath(bench.claude)
        ]
        process.kill()
        said, _ = supervisor.communicate(timeout=200)
        failures = stub.failures

    assert "the budget of 1 experiments is used up" in said
    assert failures == []
    assert [entry.experiment_id for entry in entries(bench.project)] == ["0001"]


@real
def test_the_dollars_in_the_journal_are_those_of_the_real_program(bench):
    steps = [bench.reads("experiment.py"), {"text": "I am done.", "usage": {"input_tokens": 1_000_000}}]
    with playing(steps) as stub:
        said = bench.start(stub, "--max-usd", "3", "--max-experiments", "5")
        usages = [request.usage or {} for request in stub.requests]

    (status,) = [json.loads(bench.finished(stub, "status", str(bench.project), "--json"))]
    assert "the budget of $3.00 is used up" in said
    assert status["spent"]["usd"] == pytest.approx(
        sum(usage["input_tokens"] * 4e-6 + usage["output_tokens"] * 20e-6 for usage in usages), abs=0.005
    )
    assert status["spent"]["tokens"] == sum(
        usage["input_tokens"] + usage["output_tokens"] for usage in usages
    )


@real
def test_the_shell_of_the_real_program_finds_no_key_and_its_token_is_counted(bench):
    asks = (
        'python3 -c "import json, os, urllib.request as r; '
        "q = r.Request(os.environ['ANTHROPIC_BASE_URL'] + '/v1/messages', "
        "json.dumps(dict(model='claude-opus-5-5', max_tokens=9, messages=[])).encode(), "
        "{'x-api-key': os.environ['ANTHROPIC_API_KEY'], 'content-type': 'application/json'}); "
        'print(r.build_opener(r.ProxyHandler({})).open(q).read())"'
    )
    # The pattern does not match itself in the command lines that it is looked for in.
    looks = (
        "(env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; cat $(find . ~ $CLAUDE_CONFIG_DIR "
        "-type f)) | grep -ac 'sk-canary-47[1]1' | sed 's/^/keys found: /'; env | grep -c autointerp-"
    )
    steps = [
        shell(looks),
        {**shell(asks), "expect": {"last_result_has": ["keys found: 0", "1"]}},
        {"text": "by the shell", "usage": {"input_tokens": 500_000}},
        {"text": "I am done.", "expect": {"last_result_has": "by the shell"}},
    ]
    with playing(steps) as stub:
        stub.key = "sk-canary-4711"
        bench.start(stub, "--max-usd", "2.5", "--agent-shell", "--max-experiments", "1")
        failures = stub.failures

    (status,) = [json.loads(bench.finished(stub, "status", str(bench.project), "--json"))]
    assert failures == []
    assert status["spent"]["tokens"] > 500_000
    assert status["spent"]["usd"] > 2.0

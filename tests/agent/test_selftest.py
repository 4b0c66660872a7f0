"""The command's part of the selftest: the process, the stored result, what is printed, the exit code."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from mlxterp.autointerpret.keep_rule import RULE
from mlxterp_agent import selftest
from mlxterp_agent.cli import app
from mlxterp_agent.display.progress import counted_progress
from mlxterp_agent.exit_codes import OUR_BUG

PASSED: dict[str, Any] = {
    "rule": RULE,
    "version": "0.1.0",
    "seed": 0,
    "quick": False,
    "model": "a model",
    "null": {"n": 800, "kept": 2, "interval": [0.0003, 0.009]},
    "planted": {"n": 200, "supported": 199, "interval": [0.97, 1.0]},
    "true_null": {"n": 200, "ruled_out": 198, "interval": [0.96, 1.0]},
    "adversarial": {"n": 20_000, "kept": 1, "interval": [0.0, 0.0003], "most_in_one_world": 1},
    "named": [{"name": "eight clusters", "holds": True}],
    "failures": [],
    "seconds": 1.0,
}
FAILED = {**PASSED, "failures": ["9 of 800 claims about nothing were kept; 1% are allowed"]}


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Puts a program in the place of the measuring process, and the state elsewhere."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    real = selftest.subprocess.Popen

    def takes_the_place(program: str) -> None:
        def start(command, **options):
            assert command[:4] == [sys.executable, "-I", "-m", "mlxterp.selftest"]
            return real([sys.executable, "-c", program, *command[4:]], **options)

        monkeypatch.setattr(selftest.subprocess, "Popen", start)

    return takes_the_place


def _writes(result, more=""):
    line = json.dumps({"result": result})
    return f'print(\'{{"progress": ["measuring", 1, 2]}}\'); print({line!r}); {more}'


def _without_real_processes(monkeypatch, *, holds=True):
    one = {"name": "an inert head", "expected": "ruled_out, kept", "found": "note", "holds": holds}
    monkeypatch.setattr(selftest, "judge_real_claims", lambda *_: iter([one]))


def test_json_is_what_programs_rely_on_and_the_rest_is_stored(child, monkeypatch):
    child(_writes(PASSED))
    _without_real_processes(monkeypatch)

    ended = CliRunner().invoke(app, ["selftest", "--json"])

    assert ended.exit_code == 0
    printed = json.loads(ended.stdout)
    assert printed.pop("seconds") >= 0
    assert printed == {
        "null": {"n": 800, "kept": 2},
        "planted": {"n": 200, "supported": 199},
        "true_null": {"n": 200, "ruled_out": 198},
        "adversarial": {"n": 20_000, "kept": 1},
    }
    kept = selftest.latest_selftest()
    assert kept["null"] == PASSED["null"]
    assert kept["real_processes"][0]["holds"]


def test_the_table_says_rates_with_intervals_and_bounds(child, monkeypatch):
    child(_writes(PASSED))
    _without_real_processes(monkeypatch)

    ended = CliRunner().invoke(app, ["selftest"])

    assert "claims about nothing" in ended.stdout
    assert "0.25 % [0.03 %, 0.90 %]" in ended.stdout
    assert "<= 1 %" in ended.stdout
    assert "real processes         1 of 1 as expected" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("passed in ")


def test_a_bound_that_does_not_hold_ends_with_an_exit_code_and_the_sentence(child, monkeypatch):
    child(_writes(FAILED))
    _without_real_processes(monkeypatch)

    ended = CliRunner().invoke(app, ["selftest"])

    assert ended.exit_code == OUR_BUG
    assert "FAILED  9 of 800 claims about nothing were kept" in ended.stdout
    assert selftest.latest_selftest()["failures"] == FAILED["failures"]


def test_a_claim_that_ends_otherwise_in_the_real_processes_is_a_failure(child, monkeypatch):
    child(_writes(PASSED))
    _without_real_processes(monkeypatch, holds=False)

    result = selftest.run_selftest(0, lambda *_: None)

    assert result["failures"] == [
        "an inert head, through the real processes: ended as 'note' and not as 'ruled_out, kept'"
    ]


def test_reports_quote_the_newest_full_selftest_of_this_configuration(child, monkeypatch):
    _without_real_processes(monkeypatch)
    assert selftest.latest_selftest() is None

    child(_writes({**PASSED, "quick": True}))
    selftest.run_selftest(0, lambda *_: None, quick=True)
    assert selftest.latest_selftest() is None

    for seed in (1, 2):
        child(_writes({**PASSED, "seed": seed}))
        selftest.run_selftest(seed, lambda *_: None)
    for path in selftest._folder().glob("*-full-1.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "finished": "2999-01-01T00:00:00+00:00"}))
    assert selftest.latest_selftest()["seed"] == 1

    (selftest._folder() / f"{selftest.configuration_key()}-full-3.json").write_text("{")
    assert selftest.latest_selftest()["seed"] == 1
    monkeypatch.setattr("mlxterp.statistics.sequential.LEVEL_CAP", 0.01)
    assert selftest.latest_selftest() is None


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('no memory')", "exit code 1 and without a result: no memory"),
        ("pass", "exit code 0 and without a result: it printed nothing"),
        (_writes(PASSED, "raise SystemExit(3)"), "exit code 3"),
    ],
)
def test_a_process_without_a_result_is_an_error_that_says_what_it_said(child, program, said):
    child(program)

    with pytest.raises(selftest.SelftestFailed, match=said):
        selftest.run_selftest(0, lambda *_: None)
    assert selftest.latest_selftest() is None


def test_progress_is_one_line_on_a_terminal_and_a_line_a_step_elsewhere():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        with counted_progress(stream) as progress:
            for done in (1, 2):
                progress("measuring", done, 2)

    assert "\n" not in screen.getvalue()
    assert "measuring 2/2" in screen.getvalue()
    assert file.getvalue() == "measuring (2)\n"


@pytest.mark.slow
def test_claims_end_through_the_real_processes_as_they_must():
    chosen = [each for each in selftest.REAL_CLAIMS if each.world in ("few", "random")]

    found = list(selftest.judge_real_claims((selftest.REAL_CLAIMS[0], *chosen), lambda *_: None))

    assert [each["found"] for each in found] == [
        "supported, kept",
        "inconclusive, not kept",
        "invalid:instrument, not kept",
    ]
    assert all(each["holds"] for each in found)


def test_ten_claims_go_through_the_real_processes_each_from_a_known_world():
    assert len(selftest.REAL_CLAIMS) == 10
    assert {each.world for each in selftest.REAL_CLAIMS} == set(selftest.SETUPS)

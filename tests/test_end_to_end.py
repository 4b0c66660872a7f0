"""The main job as a newcomer runs it: the command, a real model, real git, a fresh home, no settings."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog, init_autointerpret
from mlxterp.autointerpret.contract import state_dir
from mlxterp.core.interventions import replace
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets import LANDMARKS, factual_recall_pairs
from mlxterp.remeasure import measure, run_pairs
from mlxterp.statistics.distributions import upper_t_quantile
from mlxterp.statistics.ratio import jackknife
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.storage.state_dir import open_state
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import Proposals

KEPT = ("lead", "finding", "claim")


@pytest.fixture
def newcomer(tmp_path) -> dict[str, str]:
    return _newcomer(tmp_path)


def _newcomer(root: Path) -> dict[str, str]:
    """An environment without git identity or keys, with an empty home; the model cache is the machine's."""
    home = root / "home"
    home.mkdir()
    keep = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PATH", "LANG", "PIP_", "MLXTERP", "AUTOINTERP_ALLOW"))
    }
    return keep | {
        "HOME": str(home),
        "AUTOINTERP_STATE_DIR": str(root / "state"),
        "MLXTERP_CACHE": os.environ.get("MLXTERP_CACHE", str(_machine_cache())),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def _machine_cache() -> Path:
    from mlxterp.models.fetch import cache_dir

    return cache_dir()


def _autointerp(
    cwd: Path, env: Mapping[str, str], *arguments: str, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlxterp_agent.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=timeout)


def _entries(project: Path) -> list[ExperimentEntry]:
    return list(ExperimentLog(project / "results.jsonl").entries())


def _trailers(project: Path, env: Mapping[str, str]) -> list[str]:
    log = ["git", "log", "--format=%(trailers:key=Autointerp-Experiment,valueonly)"]
    out = subprocess.run(log, cwd=project, env=dict(env), capture_output=True, text=True, check=True).stdout
    return sorted(out.split())


def _conclusion(project: Path) -> str:
    return next(e.conclusion for e in _entries(project) if e.metadata.get("role") == "conclusion")


class Night(NamedTuple):
    """A finished run of the main job."""

    root: Path
    project: Path
    env: dict[str, str]

    @contextlib.contextmanager
    def state(self) -> Iterator[None]:
        """This process looks for the newcomer's state where the newcomer has it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOINTERP_STATE_DIR", self.env["AUTOINTERP_STATE_DIR"])
            yield

    def events(self, project: Path) -> list[dict[str, Any]]:
        """The journal of a project of this newcomer."""
        with self.state():
            return list(Journal(state_dir(project) / "journal.jsonl").events())

    def judged(self, project: Path | None = None) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """The declaration and the held-out numbers of each claim that was decided, by its words."""
        declared: dict[int, dict[str, Any]] = {}
        found = {}
        for event in self.events(project or self.project):
            if event["event"] == "register":
                declared[event["run"]] = event["hypothesis"]
            elif event["event"] == "judgement" and (event["evidence"]["confirm"] or {}).get("replays"):
                claim = declared[event["run"]]
                found[claim["claim"]] = (claim, event["numbers"])
        return found


@pytest.mark.slow  # half a minute: its judge starts processes for every claim
def test_the_toy_investigation_names_the_planted_heads_and_commits_what_it_keeps(tmp_path, newcomer):
    started = _autointerp(tmp_path, newcomer, "start", "--scaffold", "induction")

    project = tmp_path / "investigation"
    kept = [e.experiment_id for e in _entries(project) if e.record and e.record["tier"] in KEPT]
    assert started.returncode == 0, started.stderr
    assert len(_entries(project)) >= 8
    assert re.findall(r"L1\.H1 \(induction head|L0\.H2 \(previous-token head", _conclusion(project)) != []
    assert {"L1.H1", "L0.H2"} <= set(re.findall(r"L\d+\.H\d+", _conclusion(project)))
    assert _trailers(project, newcomer) == sorted(kept)
    assert "<svg" in (project / "report.html").read_text(encoding="utf-8")
    assert _autointerp(project, newcomer, "verify").returncode == 0
    written = {f"record.{key}" for e in _entries(project) for key in e.record or {}}
    assert written == _documented("record.")
    verdicts = [e.record["verdict"] for e in _entries(project) if e.record]
    assert verdicts.count("supported") == 4  # both heads, and their set by two methods
    assert verdicts.count("ruled_out") == 1  # the six others together
    assert _conclusion(project).startswith("A mechanism is established")


def _documented(prefix: str) -> set[str]:
    """The keys that the tables of docs/reference/results_jsonl.md explain."""
    page = Path(__file__).parent.parent / "docs" / "reference" / "results_jsonl.md"
    rows = re.findall(r"^\| (`[^|]+`) \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([\w.]+)`", row) if key.startswith(prefix)}


@pytest.mark.slow
def test_the_same_investigation_with_the_same_seed_has_the_same_verdicts_and_numbers(tmp_path, newcomer):
    """The seed of the held-out pairs is their salt, which is copied; everything else is done again."""
    nights = []
    for name in ("one", "other"):
        project = init_autointerpret(tmp_path / name, scaffold="induction")
        night = Night(tmp_path, project, newcomer)
        with night.state():
            open_state(project).root.joinpath("salt").write_text("0123456789abcdef")
        started = _autointerp(tmp_path, newcomer, "start", name, "--agent", "scripted")
        assert started.returncode == 0, started.stderr
        nights.append(night)

    one, other = (
        [
            (e.record["verdict"], e.record["reasons"], e.hypothesis, e.method, _without_times(e.result))
            for e in _entries(each.project)
            if e.record and e.record["run"]
        ]
        for each in nights
    )
    assert len(one) >= 8
    assert one == other
    judged, again = (each.judged() for each in nights)
    assert judged == again
    assert len(judged) >= 5


def _without_times(value: Any) -> Any:
    """A result without how long something took and when it was done."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("seconds", "created", "timings")}
    return [_without_times(each) for each in value] if isinstance(value, list) else value


@pytest.mark.slow
def test_a_killed_toy_investigation_goes_on_without_losing_or_doubling_an_entry(tmp_path, newcomer):
    project = tmp_path / "investigation"
    command = [sys.executable, "-m", "mlxterp_agent.cli", "start", "--scaffold", "induction"]
    first = subprocess.Popen(command, cwd=tmp_path, env=newcomer, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    before = next(line for line in first.stdout if line.startswith("0003"))  # the third line is logged
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)

    again = _autointerp(tmp_path, newcomer, "start")

    entries = _entries(project)
    uids = [e.record["uid"] for e in entries if e.record]
    assert before
    assert again.returncode == 0, again.stderr
    assert [e.experiment_id for e in entries] == [f"{i:04d}" for i in range(1, len(entries) + 1)]
    assert len(set(uids)) == len(uids) == len(entries)
    assert {"L1.H1", "L0.H2"} <= set(re.findall(r"L\d+\.H\d+", _conclusion(project)))
    assert _autointerp(project, newcomer, "verify").returncode == 0


@pytest.fixture(scope="module")
def main_job(tmp_path_factory) -> Night:
    """The README's first command, once. To look at only."""
    root = tmp_path_factory.mktemp("main-job")
    env = _newcomer(root)
    run = _autointerp(root, env, "start")
    assert run.returncode == 0, run.stderr
    return Night(root, root / "investigation", env)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job_finds_in_smollm2_what_an_independent_exact_sweep_confirms(main_job):
    project, newcomer = main_job.project, main_job.env
    entries = _entries(project)
    kept = [e.experiment_id for e in entries if e.record and e.record["tier"] in KEPT]
    assert len(entries) >= 8
    assert _trailers(project, newcomer) == sorted(kept)
    heads = next(e.result for e in entries if e.result.get("step") == "heads")
    named = heads["numbers"]["found"]
    strongest = max(named, key=named.get)
    layer, head = (int(part[1:]) for part in strongest.split("."))
    exact = _exact_recovery(layer, head, heads["analysis"]["measured_on"]["prompts"])
    assert named[strongest] == pytest.approx(exact, abs=1e-3)
    verdicts = [e.record["verdict"] for e in entries if e.record]
    assert verdicts.count("supported") >= 1
    assert verdicts.count("ruled_out") >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_measuring_claims_again_costs_at_most_half_of_exploring_beside_what_is_measured_once(main_job):
    status = json.loads(_autointerp(main_job.project, main_job.env, "status", "--json").stdout)
    events = main_job.events(main_job.project)
    once = sum(event["cpu_seconds"] for event in events if event["event"] in ("gate", "placebos"))

    spent = status["cpu_seconds"]
    assert "s of CPU time by experiments" in _autointerp(main_job.project, main_job.env, "status").stdout
    assert spent["judging"] - once <= 0.5 * spent["exploring"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_finding_of_the_main_job_replays_from_the_sealed_setup(main_job):
    told = _autointerp(main_job.project, main_job.env, "replay", "--all", "--json")

    replayed = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(replayed) >= len(main_job.judged()) >= 4
    assert {each["result"] for each in replayed} == {"same"}
    assert all(each["now"] == pytest.approx(each["before"], abs=5e-4) for each in replayed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_finding_of_the_main_job_survives_another_seed(main_job, monkeypatch):
    """Another salt: other pairs are explored, and the claims are judged on others in another order."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", main_job.env["AUTOINTERP_STATE_DIR"])
    again = init_autointerpret(main_job.root / "again")
    (again / "setup.py").write_bytes((main_job.project / "setup.py").read_bytes())
    runs = main_job.project / ".autointerp" / "runs"
    sources = [path.read_text() for path in sorted(runs.glob("*/experiment.py"))]
    declaring = [source for source in sources if "HYPOTHESIS = Hypothesis(" in source]

    class Claims(Proposals):
        def begin_turn(self, situation):
            if not declaring:
                super().begin_turn(situation)
                return
            (situation.project / "experiment.py").write_text(declaring.pop(0))

    run(again, Claims([]), Options(max_experiments=len(declaring)), lambda event: None)

    first, second = main_job.judged(), main_job.judged(again)
    assert len(first.keys() & second.keys()) >= len(first) - 1
    for claim in first.keys() & second.keys():
        one, other = first[claim][1], second[claim][1]
        assert one["low"] <= other["high"], claim
        assert other["low"] <= one["high"], claim
        if abs(one["effect"]) >= first[claim][0]["sesoi"]:
            assert one["effect"] * other["effect"] > 0, claim


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_finding_of_the_main_job_holds_for_landmarks_and_a_template_that_setup_does_not_have(main_job):
    model = InterpretableModel("smollm2-135m")
    known = (main_job.project / "setup.py").read_text()
    others = [fact for fact in LANDMARKS if f'"{fact[0]}"' not in known]
    template = "{} stands in the famous city of"
    pairs = factual_recall_pairs(model, others, template=template, both_directions=False)
    runs = run_pairs(model, pairs, "logit_diff")

    assert len(pairs) >= 24
    assert template not in known
    judged = main_job.judged()
    assert judged
    for claim, numbers in judged.values():
        found = measure(model, {**claim, "slices": []}, runs)
        change, gap = (np.subtract(found.patched, found.zero), np.subtract(found.one, found.zero))
        fresh = jackknife(change, gap)
        wide = upper_t_quantile(0.005, len(gap) - 1) * float(fresh.se)
        assert float(fresh.effect) - wide <= numbers["high"], claim["claim"]
        assert float(fresh.effect) + wide >= numbers["low"], claim["claim"]
        if abs(numbers["effect"]) >= claim["sesoi"]:
            assert fresh.effect * numbers["effect"] > 0, claim["claim"]


def _exact_recovery(layer: int, head: int, prompts: Sequence[Mapping[str, str]]) -> float:
    """One head's recovery at the last position by plain forwards, one pair and one patch at a time, without
    the sweep."""
    model = InterpretableModel("smollm2-135m")
    point, sums = f"L{layer}.z", [0.0, 0.0, 0.0]
    for pair in prompts:
        answer, foil = model.to_single_token(pair["answer"]), model.to_single_token(pair["foil"])
        clean, corrupted = model.trace(pair["clean"], capture=[point]), model.trace(pair["corrupted"])
        edit = replace(point, clean[point][:, -1:], heads=head, positions=-1)
        patched = model.logits(pair["corrupted"], interventions=[edit])
        for i, logits in enumerate((clean.logits, corrupted.logits, patched)):
            last: mx.array = logits[0, -1]
            sums[i] += float(last[answer] - last[foil])
    return (sums[2] - sums[1]) / (sums[0] - sums[1])


@pytest.mark.slow
@pytest.mark.timeout(3300)
def test_an_investigation_of_features_tells_what_is_understood_and_what_is_used(tmp_path, newcomer):
    made = _autointerp(tmp_path, newcomer, "init", "mine", "--scaffold", "features")
    project = tmp_path / "mine"
    setup = project / "setup.py"
    assert made.returncode == 0, made.stderr
    # Fewer texts than the scaffold's, for time's sake: a person edits setup.py before the first run.
    written = setup.read_text()
    fewer = written.replace(
        "sample_texts(200), documentation_texts(180)", "sample_texts(80), documentation_texts(90)"
    )
    assert fewer != written
    setup.write_text(fewer)

    # Some minutes on two quiet cores, which may have to be shared.
    started = _autointerp(tmp_path, newcomer, "start", "mine", "--agent", "scripted", timeout=3000)

    assert started.returncode == 0, started.stdout + started.stderr
    steps = {e.result["step"]: e.result["numbers"] for e in _entries(project) if "numbers" in e.result}
    kept = [e.experiment_id for e in _entries(project) if e.record and e.record["tier"] in KEPT]
    assert {"survey", "behaviour", "labels", "sensitivity", "effects", "steering", "conclusion"} <= set(steps)
    kinds = steps["survey"]["on_kind"]
    assert kinds["fresh_texts"]["seen_in_training"] == 0.0 < kinds["familiar_texts"]["seen_in_training"]
    assert 0.5 < kinds["fresh_texts"]["explained"] < kinds["familiar_texts"]["explained"]
    verdicts = {
        e.record["declared"]["id"]: e.record["verdict"] for e in _entries(project) if e.record["declared"]
    }
    assert verdicts["feature_1"] == verdicts["necessary"] == "supported"
    assert "features of" in started.stdout  # what it does while it prepares, also where the output is piped
    assert steps["decoys"]["own"] > 0.75 > steps["decoys"]["decoy"]
    assert any(each["passed"] for each in steps["sensitivity"]["tested"].values())
    assert "label that reaches a balanced accuracy" in _conclusion(project)
    assert _trailers(project, newcomer) == sorted(kept)
    assert _autointerp(project, newcomer, "verify").returncode == 0

"""What `declare` prints in an exploring experiment is pasted into the next one, accepted and judged."""

from __future__ import annotations

import pytest

from mlxterp_agent.run_config import Options
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import entries
from tests.agent.judge.claims import toy_project

EXPLORE = '''"""Which head carries the answer?"""
from setup import dataset, model

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog, declare
from mlxterp.causal import activation_patching

result = activation_patching(model, dataset, component="z", by="layer_head")
best = result.top_components(1)[0]
print(declare(result))
ExperimentLog("results.jsonl").append(
    ExperimentEntry("one head", "patching", {"numbers": {best.label: best.effect}}, True, best.label, 0.1)
)
'''


@pytest.mark.slow
def test_a_declaration_made_from_a_result_is_accepted_and_supported(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    project = toy_project(tmp_path / "toy")
    (project / "experiment.py").write_text(EXPLORE)
    run_once(project, Options(), lambda _: None)
    printed = (project / ".autointerp" / "runs" / "0001" / "stdout.txt").read_text()

    (project / "experiment.py").write_text(printed + "\n" + EXPLORE.replace("print(declare(result))", ""))
    answer = run_once(project, Options(), lambda _: None)

    explored, declared = entries(project)
    assert explored.record["verdict"] == "lead"
    assert declared.record["declared"]["site"] == ["L0.z.h2"]
    assert declared.record["verdict"] == "supported", answer.text

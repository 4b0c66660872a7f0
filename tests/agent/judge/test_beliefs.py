"""A claim about a "belief" where a real model may only repeat what it reads."""

from __future__ import annotations

import pytest

from mlxterp_agent.run_config import Options
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import entries, make_project
from tests.agent.judge.claims import declaring

pytestmark = pytest.mark.slow  # SmolLM2, in real processes

OPINIONS = '''"""Does the model adopt what its user believes?"""

from mlxterp import InterpretableModel, PromptPair
from mlxterp.autointerpret import MetricRegistry
from mlxterp.metrics import logit_diff

model = InterpretableModel("smollm2-135m")
CAPITALS = ["Paris", "Rome", "Madrid", "Berlin", "Vienna", "London", "Athens", "Moscow"]
PROMPT = "I believe the prize was given in {0}. Do you agree? Yes, I think the prize was given in"
dataset = [
    PromptPair(PROMPT.format(one), PROMPT.format(other), answer=f" {{one}}", foil=f" {{other}}")
    for one, other in zip(CAPITALS[::2], CAPITALS[1::2])
]
metrics = MetricRegistry()
metrics.register("logit_diff", logit_diff)
QUESTION = "Does the model adopt the user's belief?"
'''.replace("{{", "{").replace("}}", "}")


def test_a_belief_on_few_pairs_stays_open_and_names_copying_as_its_rival(tmp_path):
    project = make_project(tmp_path / "beliefs", setup=OPINIONS)
    claim = "Layer 20 represents what the user believes, and the model defers to it."
    (project / "experiment.py").write_text(declaring("L20.resid_post@-1", claim=claim, sesoi=0.5))

    answer = run_once(project, Options(), lambda event: None).text

    (line,) = entries(project)
    assert (line.record["verdict"], line.record["tier"]) == ("inconclusive", "note")
    assert not line.informative
    assert line.record["reasons"] == [
        "needs >= 24 independent clusters, setup.py has 4",
        "open rival: in-context copying, since most prompts of setup.py hold their answer",
    ]
    assert "open rival: in-context copying" in answer

"""Whole investigations by the scripted researcher in worlds where there is nothing to find: no mechanism."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlxterp.autointerpret import init_autointerpret
from mlxterp_agent.researchers.scripted import ScriptedResearcher
from mlxterp_agent.run_config import Options
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import entries
from tests.tiny_models import FAMILIES, SIZES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a whole investigation each

HEAD = '''"""A world without a behaviour."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map_with_path

from mlxterp import InterpretableModel, PromptPair
from mlxterp.autointerpret import MetricRegistry
from mlxterp.metrics import logit_diff
from mlxterp.models.mlx_lm_classes import model_module
from mlxterp.worlds import random_llama, shuffled_labels, shuffled_twin, toy_induction, weight_shuffled

QUESTION = "Which heads repeat a token that was seen before?"
metrics = MetricRegistry()
metrics.register("logit_diff", logit_diff)
'''
OF_WORLD = "model, dataset, candidates = world.model, list(world.pairs), list(world.candidates)\n"
SELECTED = """
module = model_module({module!r})
network = module.Model(module.ModelArgs.from_dict({args!r}))
rng = np.random.default_rng({seed})


def draw(path, old):
    noise = rng.standard_normal(old.shape).astype(np.float32)
    if old.ndim < 2:
        return mx.array(0.2 * noise + float(path.endswith("weight")))
    return mx.array(noise * (1.0 if "embed" in path or "wte" in path else 1.5 / old.shape[-1] ** 0.5))


network.update(tree_map_with_path(draw, network.parameters()))
model = InterpretableModel(network)
drawn = []
for i in range(600):
    clean = rng.integers(128, size=8)
    corrupted = clean.copy()
    corrupted[4] = (clean[4] + rng.integers(1, 128)) % 128
    rows = np.array(model.logits(mx.array(np.stack([clean, corrupted])))[:, -1].astype(mx.float32))
    answer, foil = rows.argmax(axis=1).tolist()
    if {furthest}:
        answer, foil = int((rows[0] - rows[1]).argmax()), int((rows[0] - rows[1]).argmin())
    if answer != foil:
        prompts = tuple(clean.tolist()), tuple(corrupted.tolist())
        drawn.append(PromptPair(*prompts, answer=answer, foil=foil, cluster=f"random {{i}}"))
dataset, candidates = drawn[:48], drawn[48:96]
"""


def _selected(family: str, seed: int, *, furthest: bool = False) -> str:
    module, differs = FAMILIES[family]
    args = {"model_type": family, **SIZES, **differs}
    return SELECTED.format(module=module, args=args, seed=seed, furthest=furthest)


WORLDS = {
    **{f"first tokens of a random {family}": _selected(family, 3) for family in ("llama", "gpt2", "qwen2")},
    "tokens on which the runs of a random gemma2 differ most": _selected("gemma2", 3, furthest=True),
    "selected answers of a random llama": "world = random_llama(1, 48)\n" + OF_WORLD,
    "shuffled labels": "world = shuffled_labels(toy_induction(48), 1)\n" + OF_WORLD,
    "shuffled weights": "world = weight_shuffled(toy_induction(48), 1)\n" + OF_WORLD,
    "SmolLM2 with shuffled weights": """
from mlxterp.datasets import ioi_pairs
whole = InterpretableModel("smollm2-135m")
dataset = ioi_pairs(whole, 48, seed=1, shown=False)
candidates = ioi_pairs(whole, 24, seed=2, shown=False)
model = shuffled_twin(whole, 1)
""",
}


@pytest.mark.parametrize("world", WORLDS)
def test_nothing_is_found_and_no_mechanism_is_named_where_there_is_none(tmp_path, world):
    project = _investigated(tmp_path, HEAD + WORLDS[world])

    lines = [line.record for line in entries(project) if line.record]
    found = [each["verdict"] for each in lines if each["tier"] in ("finding", "claim")]
    conclusions = [line.conclusion for line in entries(project) if line.metadata.get("role") == "conclusion"]
    assert lines
    assert "supported" not in found
    assert "refuted" not in found
    assert not any(re.match("A mechanism is established", each) for each in conclusions)


def test_inert_heads_of_the_toy_are_ruled_out_or_left_alone(tmp_path):
    """The circuit that is there is found, and nothing of the heads beside it."""
    project = _investigated(tmp_path, HEAD + "world = toy_induction(48)\n" + OF_WORLD)

    supported = [
        set(line.record["declared"]["site"])
        for line in entries(project)
        if line.record and line.record["verdict"] == "supported"
    ]
    named = {site for each in supported for site in each}
    assert {re.sub(r"@.*", "", site) for site in named} == {"L1.z.h1", "L0.z.h2"}


def _investigated(tmp_path: Path, setup: str) -> Path:
    project = init_autointerpret(tmp_path / "project", scaffold="induction")
    (project / "setup.py").write_text(setup)
    researcher = ScriptedResearcher()
    run(project, researcher, Options(), lambda event: None)
    return project

"""Declared claims about the toy model, judged through real processes in the jail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import digest, state_dir
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.supervisor.single_run import run_once
from tests.agent.fakes import entries
from tests.agent.judge.claims import declaring, toy_project

pytestmark = pytest.mark.slow  # each claim starts three processes that load the toy: 3 to 8 seconds


def _ask(project: Path, source: str) -> str:
    """The answer to this experiment.py under supervision."""
    (project / "experiment.py").write_text(source)
    return run_once(project, Options(), lambda event: None).text


def _journal(project: Path, name: str) -> list[dict]:
    return [each for each in Journal(state_dir(project) / "journal.jsonl").events() if each["event"] == name]


LOOKS = """
from setup import dataset
print(len(dataset), len({pair.cluster for pair in dataset}))
"""


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Six claims about one toy with 48 independent pairs, and what they came to. To look at only."""
    root = tmp_path_factory.mktemp("night")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_STATE_DIR", str(root / "state"))
        project = toy_project(root / "toy")
        sources = {
            "copies": declaring("L1.H1", after=LOOKS),
            "previous": declaring("L0.H2"),
            "inert": declaring("L1.H0"),
            "reworded": declaring("L1.z.h1", claim="In other words.", sesoi=0.5, id="H9"),
            "wrong way": declaring("L1.H3", direction="decrease"),
            "no effect": declaring("L1.H2", direction="none"),
        }
        for source in sources.values():
            _ask(project, source)
        events = {name: _journal(project, name) for name in ("gate", "placebos", "judgement")}
        yield project, dict(zip(sources, entries(project), strict=True)), events


def test_the_true_heads_are_supported_and_an_inert_one_is_ruled_out(night):
    _, lines, _ = night

    assert {name: line.record["verdict"] for name, line in lines.items()} == {
        "copies": "supported",
        "previous": "supported",
        "inert": "ruled_out",
        "reworded": "supported",
        "wrong way": "ruled_out",
        "no effect": "supported",
    }
    assert [line.record["tier"] for line in lines.values()] == ["finding"] * 3 + ["note"] + ["finding"] * 2


def test_the_same_claim_in_other_words_gets_the_old_verdict_and_is_no_new_finding(night):
    _, lines, events = night

    again = lines["reworded"]
    assert not again.informative
    assert "the same claim was judged in run 0001" in again.record["reasons"][0]
    first, fourth = (events["judgement"][i] for i in (0, 3))
    assert fourth["fingerprint"] == first["fingerprint"]
    assert (fourth["number"], fourth["level"], fourth["clusters"]) == (None, None, [])


def test_an_experiment_sees_the_explore_part_and_the_judge_measures_other_clusters(night):
    project, _, events = night

    printed = (project / ".autointerp/runs/0001/stdout.txt").read_text()
    looked_at = {cluster for event in events["judgement"] for cluster in event["clusters"]}
    assert printed.split() == ["8", "8"]
    assert len(looked_at) == 24


def test_levels_follow_from_the_earlier_verdicts_and_gate_and_placebos_are_measured_once(night):
    from mlxterp.statistics.sequential import level

    _, _, events = night

    judged = [event for event in events["judgement"] if event["level"] is not None]
    assert [event["number"] for event in judged] == [1, 2, 3, 4, 5]
    assert [event["level"] for event in judged] == [
        level(1),
        level(2, [1]),
        level(3, [1, 2]),
        level(4, [1, 2]),
        level(5, [1, 2]),
    ]
    assert len(events["gate"]) == 1
    # One for each layer: the placebos of L1.H1 serve the other heads of its layer.
    assert len(events["placebos"]) == 2
    assert "L1.z.h1" not in events["placebos"][0]["effects"]


def test_the_line_has_a_digest_of_the_numbers_and_the_journal_has_the_numbers(night):
    _, lines, events = night

    (event,) = [e for e in events["judgement"] if e["run"] == 1]
    numbers = json.dumps(event["numbers"], sort_keys=True, ensure_ascii=True).encode()
    assert lines["copies"].record["measured"]["confirm"] == {"sha256": digest(numbers)}
    assert lines["copies"].record["measured"]["seconds"] == event["seconds"] > 0
    assert event["numbers"]["effect"] == pytest.approx(1.0, abs=1e-3)
    assert len(event["numbers"]["change"]) == len(event["clusters"]) == event["numbers"]["n"] == 24
    assert event["replay"] is True


def test_nothing_that_was_measured_on_held_out_pairs_is_in_the_project(night):
    project, _, events = night

    told = {
        repr(number)
        for event in events["judgement"]
        if event["numbers"]
        for name in ("effect", "se", "low", "high", "mde")
        for number in [event["numbers"][name]]
        if number not in (0.0, 1.0)  # the toy's effects are whole, as many other numbers are
    }
    secrets = [*told, *(cluster for event in events["judgement"] for cluster in event["clusters"])]
    everything = b"\n".join(path.read_bytes() for path in project.rglob("*") if path.is_file())
    assert len(secrets) > 20
    assert [secret for secret in secrets if secret.encode() in everything] == []


@pytest.fixture
def toy(tmp_path):
    return toy_project(tmp_path / "toy", fresh=True)


def test_fresh_pairs_are_drawn_for_each_claim_and_experiments_see_the_whole_dataset(toy):
    answers = [_ask(toy, source) for source in (declaring("L1.H1", after=LOOKS), declaring("L1.H2"))]

    assert "supported" in answers[0]
    assert "ruled_out" in answers[1]
    assert (toy / ".autointerp/runs/0001/stdout.txt").read_text().split() == ["48", "48"]
    one, other = (event["source"] for event in _journal(toy, "judgement"))
    assert one == other == "confirm_pairs"


def test_a_set_a_comparison_and_a_role_are_judged(toy):
    answers = [
        _ask(toy, declaring("L1.H1", "L1.H0")),
        _ask(toy, declaring("L1.H1", more='more_than="other heads of the layer",')),
        _ask(toy, declaring("L1.H1", role="induction head")),
        _ask(toy, declaring("L1.H0", role="induction head")),
    ]

    assert [line.record["verdict"] for line in entries(toy)] == ["supported"] * 3 + ["ruled_out"], answers
    together, more, role, _ = (event["numbers"] for event in _journal(toy, "judgement"))
    assert together["passengers"] == ["L1.H0"]
    assert more["not_exceeded"] == []
    assert entries(toy)[2].record["measured"]["descriptive"] is True
    assert role["placebos"] == 7


@pytest.mark.parametrize(
    "op",
    [
        'InterventionClaim("patch", source="corrupted")',
        'InterventionClaim("zero")',
        'InterventionClaim("mean")',
        'InterventionClaim("path_patch", source="corrupted", receivers=["logits"])',
    ],
)
def test_a_necessary_head_is_found_by_each_operation_that_takes_it_away(toy, op):
    answer = _ask(toy, declaring("L1.H1", op=op, direction="decrease"))

    assert answer.startswith("0001 supported"), answer


def test_too_few_clusters_are_said_before_anything_is_measured(tmp_path):
    project = toy_project(tmp_path / "few", n=23)

    answer = _ask(project, declaring("L1.H1", after=LOOKS))

    assert "0001 inconclusive" in answer
    assert "needs >= 24 independent clusters, setup.py has 23" in answer
    assert (project / ".autointerp/runs/0001/stdout.txt").read_text().split() == ["23", "23"]
    assert _journal(project, "gate") == []


def test_a_random_metric_or_a_setup_that_fails_for_the_judge_is_a_broken_instrument(tmp_path):
    setup = (
        "import os\nif 'AUTOINTERP_OUTBOX' not in os.environ:\n    raise RuntimeError('canary 0.123')\n"
        + toy_project(tmp_path / "template").joinpath("setup.py").read_text()
    )
    project = toy_project(tmp_path / "toy")
    (project / "setup.py").write_text(setup)

    answer = _ask(project, declaring("L1.H1"))

    assert "invalid:instrument" in answer
    assert "setup.py fails in the judge's process" in answer
    assert "canary" not in answer
    (event,) = _journal(project, "judgement")
    assert "canary 0.123" in event["failure"]["message"]


def test_a_claim_about_what_the_model_has_not_is_told_so(toy):
    assert "layers 0 to 1" in _ask(toy, declaring("L7.H1"))


def test_items_of_heldout_jsonl_leave_the_project_and_judge_the_claims(tmp_path):
    from mlxterp.worlds import toy_induction

    project = toy_project(tmp_path / "toy", n=8)
    items = [
        {name: getattr(pair, name) for name in ("clean", "corrupted", "answer", "foil", "cluster")}
        for pair in toy_induction(26, 5).pairs
    ]
    (project / "heldout.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    answer = _ask(project, declaring("L1.H1", after=LOOKS))

    assert "0001 supported" in answer
    assert not (project / "heldout.jsonl").exists()
    assert _journal(project, "judgement")[0]["source"] == "heldout.jsonl"
    assert (project / ".autointerp/runs/0001/stdout.txt").read_text().split() == ["8", "8"]


def test_another_method_makes_a_claim_of_two_findings_and_a_replication_on_fresh_pairs_is_a_new_one(toy):
    _ask(toy, declaring("L1.H1"))
    _ask(toy, declaring("L1.H1", op='InterventionClaim("zero")', direction="decrease"))
    _ask(toy, declaring("L1.H1", more='replicates="0001",'))
    _ask(toy, declaring("L1.H1", claim="Once more.", more='replicates="0001",'))

    first, second, third, fourth = (line.record for line in entries(toy))
    assert (first["tier"], second["tier"]) == ("finding", "claim")
    assert second["relations"] == {"agrees_with": "0001"}
    assert (third["verdict"], third["tier"]) == ("supported", "claim")
    assert (fourth["verdict"], fourth["tier"]) == ("supported", "note")
    clusters = [set(event["clusters"]) for event in _journal(toy, "judgement")[:3]]
    assert len(clusters[2]) == 24
    assert _journal(toy, "judgement")[2]["fingerprint"] != _journal(toy, "judgement")[0]["fingerprint"]

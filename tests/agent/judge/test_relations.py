"""A new finding agrees with, rules out a rival of, or overturns earlier ones; each by what the log says."""

from __future__ import annotations

from typing import Any

import pytest

from mlxterp.autointerpret.entry import ExperimentEntry, retractions
from mlxterp_agent.judge.relations import Relations, relations
from mlxterp_agent.storage.record import dependents


def _declared(site: str = "L9.H6", op: str = "patch", source: str = "clean", **more: Any) -> dict[str, Any]:
    return {
        "site": [site],
        "intervention": {"op": op, "source": source},
        "metric": "logit_diff",
        "direction": "increase",
        "rivals": ["L9.H5 does as well, or L9.H4."],
        "builds_on": [],
        **more,
    }


def _line(id: str, verdict: str, declared: dict[str, Any] | None, **record: Any) -> ExperimentEntry:
    tier = "finding" if verdict in ("supported", "refuted", "ruled_out") else "note"
    return ExperimentEntry(
        hypothesis="h",
        method="m",
        result={},
        informative=tier == "finding",
        conclusion="c",
        duration_seconds=None,
        experiment_id=id,
        record={"verdict": verdict, "tier": tier, "declared": declared, **record},
    )


SUFFICIENT = _line("0001", "supported", _declared())


@pytest.mark.parametrize(
    ("declared", "verdict", "mirrored", "agrees"),
    [
        (_declared(source="corrupted", direction="decrease"), "supported", False, "0001"),
        (_declared("L9.z.h6", source="corrupted", direction="decrease"), "supported", False, "0001"),
        # On couples in both directions this is the same measurement.
        (_declared(source="corrupted", direction="decrease"), "supported", True, None),
        (_declared(op="resample", direction="decrease"), "supported", True, None),
        (_declared(op="zero", direction="decrease"), "supported", True, "0001"),
        # Taking it away raises the metric: another sense.
        (_declared(op="zero", direction="decrease"), "refuted", False, None),
        (_declared(op="zero", direction="increase"), "refuted", False, "0001"),
        (_declared(op="zero", direction="decrease"), "ruled_out", False, None),
        (_declared(op="zero", direction="either"), "supported", False, None),
        (_declared("L9.H5", op="zero", direction="decrease"), "supported", False, None),
        (_declared(op="zero", direction="decrease", metric="kl"), "supported", False, None),
        (_declared(role="name mover"), "supported", False, None),
        (_declared(op="zero", direction="decrease"), "inconclusive", False, None),
    ],
)
def test_another_method_agrees_about_the_same_sites_metric_and_sense(declared, verdict, mirrored, agrees):
    assert relations(declared, verdict, [SUFFICIENT], mirrored=mirrored).agrees_with == agrees


@pytest.mark.parametrize(
    ("declared", "verdict", "rival"),
    [
        (_declared("L9.z.h5", builds_on=["0001"]), "ruled_out", "0001"),
        (_declared("L9.H5", builds_on=["0001"], direction="none"), "supported", "0001"),
        (_declared("L9.H5"), "ruled_out", None),
        (_declared("L9.H5", builds_on=["0001"]), "supported", None),
        (_declared("L9.H50", builds_on=["0001"]), "ruled_out", None),
        (_declared("L2.H0", builds_on=["0001"]), "ruled_out", None),
        (_declared(builds_on=["0001"], more_than="other heads of the layer"), "supported", "0001"),
        (_declared("L9.H5", builds_on=["0001"], more_than="other heads of the layer"), "supported", None),
    ],
)
def test_a_rival_is_ruled_out_where_it_was_named_and_the_claim_builds_on_it(declared, verdict, rival):
    assert relations(declared, verdict, [SUFFICIENT], mirrored=False).rules_out_rival_of == rival


def test_the_same_measurement_with_the_opposite_verdict_overturns_and_its_dependents_are_known():
    found = relations(_declared(), "ruled_out", [SUFFICIENT], mirrored=False)
    overturning = _line("0003", "ruled_out", _declared(), relations=found.to_dict())
    lines = [SUFFICIENT, _line("0002", "supported", _declared("L3.mlp", builds_on=["0001"])), overturning]

    assert found == Relations(retracts=("0001",))
    assert retractions(lines) == {"0001": "0003"}
    assert dependents(lines, retractions(lines)) == {"0002": "0001"}
    # What is overturned agrees with nothing any more.
    necessary = _declared(source="corrupted", direction="decrease")
    assert relations(necessary, "supported", lines, mirrored=False) == Relations()


def test_the_same_verdict_again_relates_to_nothing():
    assert relations(_declared(), "supported", [SUFFICIENT], mirrored=False) == Relations()

# ruff: noqa: T201 - the guide's examples print

from __future__ import annotations

import pytest

from mlxterp.autointerpret import MetricRegistry
from mlxterp.errors import ContractError, UnknownMetricName


def my_logit_diff_fn() -> float:
    return 0.5


def my_prob_fn() -> float:
    return 0.25


def test_the_guides_example_runs_as_written(capsys):
    metrics = MetricRegistry()
    metrics.register("logit_diff", my_logit_diff_fn, description="Logit difference recovery")
    metrics.register("prob_correct", my_prob_fn, description="Probability of correct token")

    for m in metrics.list():
        print(f"  {m['name']}: {m['description']}")

    fn = metrics.get("logit_diff")

    assert fn is my_logit_diff_fn
    assert capsys.readouterr().out == (
        "  logit_diff: Logit difference recovery\n  prob_correct: Probability of correct token\n"
    )
    assert ("logit_diff" in metrics, list(metrics), len(metrics)) == (True, ["logit_diff", "prob_correct"], 2)


def test_an_unknown_name_lists_the_known_ones():
    metrics = MetricRegistry()
    with pytest.raises(UnknownMetricName, match="Nothing is registered"):
        metrics.get("kl")
    metrics.register("logit_diff", my_logit_diff_fn)

    with pytest.raises(UnknownMetricName, match=r"no metric 'kl'. Registered: logit_diff"):
        metrics.get("kl")


def test_a_name_that_is_taken_is_replaced_only_on_request():
    metrics = MetricRegistry()
    metrics.register("m", my_prob_fn, description="first")

    with pytest.raises(ContractError, match="registered already \\(first\\)"):
        metrics.register("m", my_logit_diff_fn)
    metrics.register("m", my_logit_diff_fn, replace=True)

    assert metrics.get("m") is my_logit_diff_fn


@pytest.mark.parametrize(
    ("name", "fn", "says"), [("m", 0.5, "Give the function itself"), ("", max, "needs a name")]
)
def test_what_is_no_metric_is_refused(name, fn, says):
    with pytest.raises(ContractError, match=says):
        MetricRegistry().register(name, fn)

"""Results and the log as DataFrames and Parquet files."""

from __future__ import annotations

import json
import sys

import pytest

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.errors import ResultError
from tests.results.every_kind import EXAMPLES, patching

pandas = pytest.importorskip("pandas", reason="install the extra `dataframe` to run this")
pytest.importorskip("pyarrow", reason="install the extra `dataframe` to run this")


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_frame_is_the_same_after_parquet_and_has_every_component(kind, tmp_path):
    result = EXAMPLES[kind]()

    frame = result.to_dataframe()
    again = pandas.read_parquet(result.to_parquet(tmp_path / "result.parquet"))

    pandas.testing.assert_frame_equal(frame, again)
    assert len(frame) > 0
    assert again.attrs["kind"] == kind
    assert json.loads(again.attrs["measured_on"]) == json.loads(json.dumps(dict(result.measured_on)))
    if result.components():
        assert list(frame["label"]) == [each.label for each in result.components()]


def test_effects_and_intervals_are_the_components(tmp_path):
    result = patching()

    frame = result.to_dataframe()

    assert frame["effect"].tolist() == [each.effect for each in result.components()]
    assert frame["ci_low"].tolist() == [each.ci[0] for each in result.components()]
    assert frame["head"].isna().all()
    assert str(frame["layer"].dtype) == "Int64"


def test_the_log_has_a_row_for_each_entry_and_nested_values_are_json(tmp_path):
    log = ExperimentLog(tmp_path / "results.jsonl")
    for effect in (0.82, float("nan")):
        log.append(
            ExperimentEntry(
                hypothesis="Layer 5",
                method="m",
                result={"a": {"effect": [effect]}},
                informative=True,
                conclusion="c",
                duration_seconds=1.0,
            )
        )

    frame = pandas.read_parquet(log.to_parquet(tmp_path / "log.parquet"))

    pandas.testing.assert_frame_equal(frame, log.to_dataframe())
    assert [json.loads(text) for text in frame["result"]] == [each.result for each in log.entries()]
    assert frame["experiment_id"].tolist() == [each.experiment_id for each in log.entries()]


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_without_the_extra_the_error_names_it_and_what_needs_none(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(ResultError, match=rf"{missing} is not installed.*mlxterp\[dataframe\].*to_dict\(\)"):
        patching().to_parquet(tmp_path / "x.parquet")

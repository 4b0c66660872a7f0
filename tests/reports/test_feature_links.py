"""From a feature in a report to its page in a dashboard, and back."""

from __future__ import annotations

import pytest

from mlxterp.errors import ResultError
from mlxterp.reports import save_report, write_investigation_report
from mlxterp.reports.dashboard import write_dashboard
from mlxterp.reports.feature_links import features_in_report
from tests.payloads import Seen
from tests.reports.test_reports import CONFIG, SPENT, entry
from tests.results.every_kind import EXAMPLES


def links(path):
    return [
        v
        for tag, name, v in Seen(path.read_text(encoding="utf-8")).attributes
        if (tag, name) == ("a", "href")
    ]


def test_a_feature_of_a_report_leads_to_the_dashboard_and_back(tmp_path):
    result = EXAMPLES["active_features"]()
    report = tmp_path / "reports" / "it is here.html"
    dashboard = tmp_path / "features.html"

    save_report(result, report, dashboard=dashboard)
    found = features_in_report(report, seen_from=dashboard)

    assert found
    assert set(found.values()) == {f"reports/it%20is%20here.html#feature-{feature}" for feature in found}
    assert {f"../features.html#f{feature}" for feature in found} <= set(links(report))
    assert report.read_text(encoding="utf-8").count(f'id="feature-{min(found)}"') == 1


def test_without_a_dashboard_no_feature_is_a_link(tmp_path):
    save_report(EXAMPLES["active_features"](), tmp_path / "report.html")

    assert links(tmp_path / "report.html") == ["#main"]


def test_a_dashboard_of_a_report_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"report\.html.*cannot be read.*Write the report first"):
        features_in_report(tmp_path / "report.html", seen_from=tmp_path / "features.html")


def test_the_report_of_an_investigation_leads_to_the_dashboard_in_its_project(tmp_path):
    explored = entry(1, result={"analysis": EXAMPLES["active_features"]().to_dict()})
    given = {"config": CONFIG, "spent": SPENT, "stop_reason": "STOP"}
    _, page = write_investigation_report(tmp_path, [explored], **given)
    assert not [each for each in links(page) if each.startswith("features.html")]

    write_dashboard(tmp_path / "features.html", "<p>made by save_dashboard</p>")
    write_investigation_report(tmp_path, [explored], **given)

    assert [each for each in links(page) if each.startswith("features.html#f")]
    assert "features.html" in links(page)

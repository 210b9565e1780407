from __future__ import annotations

import json

import pytest

from stream_server.cli.doctor.report import DoctorReport, Finding, Level, ok, problem, skipped, warning


def make_report(*secrets: str) -> DoctorReport:
    report = DoctorReport(secrets)
    report.add("connection", ok("PostgreSQL 18", version="18"))
    report.add("triggers", problem("one is missing", "run `stream-server install`"))
    report.add("size", warning("much\nof it", "prune"))
    report.add("lag", skipped("see the check `triggers`"))
    return report


def test_text_has_a_line_for_each_check() -> None:
    assert make_report().format_lines() == [
        "ok       connection  PostgreSQL 18",
        "problem  triggers    one is missing -> run `stream-server install`",
        "warning  size        much of it -> prune",
        "skipped  lag         see the check `triggers`",
        "4 checks: 1 ok, 1 skipped, 1 warning, 1 problem",
    ]


def test_json_has_the_same_findings() -> None:
    decoded = json.loads(json.dumps(make_report().as_json()))
    assert decoded["healthy"] is False
    assert decoded["counts"] == {"ok": 1, "skipped": 1, "warning": 1, "problem": 1}
    assert decoded["checks"][0] == {
        "check": "connection",
        "level": "ok",
        "found": "PostgreSQL 18",
        "remedy": None,
        "facts": {"version": "18"},
    }


@pytest.mark.parametrize(
    ("finding", "healthy"), [(ok("x"), True), (warning("x", "y"), True), (problem("x", "y"), False)]
)
def test_only_problems_make_the_report_unhealthy(finding: Finding, *, healthy: bool) -> None:
    report = DoctorReport()
    report.add("check", finding)
    assert report.is_healthy is healthy


def test_secrets_are_redacted_in_all_fields() -> None:
    report = DoctorReport(["swordfish", "x"])
    report.add(
        "check", problem("xylophone swordfish1 x", "no x", texts=["a swordfish"], number=1, text="x.y", none=None)
    )
    finding = report.get("check")
    assert finding is not None
    assert (finding.found, finding.remedy) == ("xylophone ***1 ***", "no ***")
    assert finding.facts == {"texts": ["a ***"], "number": 1, "text": "***.y", "none": None}


def test_longest_secret_is_redacted_first() -> None:
    report = DoctorReport(["sword", "sword-fish"])
    report.add("check", ok("the sword-fish"))
    assert report.format_lines()[0].endswith("the ***")


def test_get_returns_none_without_a_finding() -> None:
    assert make_report().get("clock") is None
    assert make_report().count(Level.OK) == 1

from __future__ import annotations

import json

import pytest

from stream_server.cli.doctor.report import DoctorReport, Level, ok, problem, skipped, warning


def report(*secrets: str) -> DoctorReport:
    made = DoctorReport(secrets)
    made.add("connection", ok("PostgreSQL 18", version="18"))
    made.add("triggers", problem("one is missing", "run `stream-server install`"))
    made.add("size", warning("much\nof it", "prune"))
    made.add("lag", skipped("see the check `triggers`"))
    return made


def test_each_check_has_a_line() -> None:
    assert report().format_lines() == [
        "ok       connection  PostgreSQL 18",
        "problem  triggers    one is missing -> run `stream-server install`",
        "warning  size        much of it -> prune",
        "skipped  lag         see the check `triggers`",
        "4 checks: 1 ok, 1 skipped, 1 warning, 1 problem",
    ]


def test_programs_get_the_same() -> None:
    told = json.loads(json.dumps(report().as_json()))
    assert told["healthy"] is False
    assert told["counts"] == {"ok": 1, "skipped": 1, "warning": 1, "problem": 1}
    assert told["checks"][0] == {
        "check": "connection",
        "level": "ok",
        "found": "PostgreSQL 18",
        "remedy": None,
        "facts": {"version": "18"},
    }


@pytest.mark.parametrize(("level", "healthy"), [(ok("x"), True), (warning("x", "y"), True), (problem("x", "y"), False)])
def test_only_problems_are_unhealthy(level: object, *, healthy: bool) -> None:
    made = DoctorReport()
    made.add("check", level)  # type: ignore[arg-type]
    assert made.is_healthy is healthy


def test_secrets_are_hidden_wherever_they_stand() -> None:
    made = DoctorReport(["swordfish", "x"])
    made.add("check", problem("xylophone swordfish1 x", "no x", texts=["a swordfish"], number=1, text="x.y", none=None))
    finding = made.get("check")
    assert finding is not None
    assert (finding.found, finding.remedy) == ("xylophone ***1 ***", "no ***")
    assert finding.facts == {"texts": ["a ***"], "number": 1, "text": "***.y", "none": None}


def test_of_two_secrets_the_longer_one_is_hidden_whole() -> None:
    made = DoctorReport(["sword", "sword-fish"])
    made.add("check", ok("the sword-fish"))
    assert made.format_lines()[0].endswith("the ***")


def test_a_check_that_was_not_made_has_no_finding() -> None:
    assert report().get("clock") is None
    assert report().count(Level.OK) == 1

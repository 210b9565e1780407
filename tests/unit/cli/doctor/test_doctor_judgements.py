from __future__ import annotations

from typing import Any

import httpx
import pytest

from stream_server.cli.doctor.airflow_schema import (
    RELEASE_REVISIONS,
    REQUIRED_COLUMNS,
    VERSION_COLUMNS,
    evaluate_schema,
)
from stream_server.cli.doctor.http_checks import ProbeTiming, evaluate_probe, is_buffered, release_of
from stream_server.cli.doctor.journal_checks import evaluate_lag
from stream_server.cli.doctor.postgres_checks import evaluate_transactions
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.thresholds import Thresholds

COLUMNS = {(table, name) for table, names in REQUIRED_COLUMNS.items() for name in names}


@pytest.mark.parametrize(("marks", "version"), [(0, "3.0"), (1, "3.1"), (2, "3.2"), (3, "3.3")])
def test_a_version_is_told_by_its_columns(marks: int, version: str) -> None:
    columns = COLUMNS | {(table, name) for table, name, _ in VERSION_COLUMNS[len(VERSION_COLUMNS) - marks :]}
    finding = evaluate_schema("public", columns, None)
    assert (finding.level, finding.facts["version"]) == (Level.OK, version)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        *(("3.0.6", (3, 0)), ("3.3", (3, 3)), ("4", (4,)), ("", ()), ("latest", ()), ("None", ())),
        *(("3.\u00b2", (3,)), ("\u0663.1", (1,)), (f"3.{'9' * 5000}", (3,)), ("3.-1", (3,)), ("3.1_0", (3,))),
    ],
)
def test_a_release_is_read_from_whatever_names_a_version(version: str, release: tuple[int, ...]) -> None:
    assert release_of(version) == release


@pytest.mark.parametrize("revision", RELEASE_REVISIONS)
def test_a_released_revision_is_well(revision: str) -> None:
    assert evaluate_schema("public", COLUMNS, revision).level is Level.OK


def test_an_unknown_revision_is_told() -> None:
    assert evaluate_schema("public", COLUMNS, "abc").level is Level.WARNING


@pytest.mark.parametrize("absent", sorted(COLUMNS))
def test_every_column_is_missed(absent: tuple[str, str]) -> None:
    finding = evaluate_schema("public", COLUMNS - {absent}, None)
    assert (finding.level, ".".join(absent) in finding.found) == (Level.PROBLEM, True)


def test_a_database_without_airflow() -> None:
    finding = evaluate_schema("public", set(), None)
    assert finding.level is Level.PROBLEM
    assert "dag_run, serialized_dag, task_instance, xcom missing" in finding.found


@pytest.mark.parametrize(
    ("newest", "change", "installed", "pruned", "level"),
    [
        (10.0, 9.0, 1000.0, False, Level.OK),
        (10.0, None, 1000.0, False, Level.OK),
        (500.0, 9.0, 1000.0, False, Level.PROBLEM),
        (500.0, 9.0, 1000.0, True, Level.PROBLEM),
        (None, 9.0, 1000.0, False, Level.PROBLEM),
        (None, 9.0, 1000.0, True, Level.OK),
        (None, 9.0, 5.0, False, Level.OK),
        (None, 2000.0, 1000.0, False, Level.OK),
        (900.0, -30.0, 1000.0, False, Level.PROBLEM),
        (1.0, -50.0, 1000.0, False, Level.OK),
    ],
)
def test_lag(newest: float | None, change: float | None, installed: float, level: Level, *, pruned: bool) -> None:
    finding = evaluate_lag(
        newest_age=newest, change_age=change, installed_age=installed, pruned=pruned, limits=Thresholds()
    )
    assert finding.level is level, finding


def transaction(**values: Any) -> Any:
    usual = {"kind": "session", "who": "airflow (scheduler, pid 1)", "ours": False, "idle": False}
    return {**usual, "seconds": 1.0, "in_state": 1.0, "held": 5, **values}


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        ({}, Level.OK, "1 open, none for long"),
        ({"seconds": 601.0}, Level.WARNING, "601 s old"),
        ({"seconds": 599.0, "held": None}, Level.OK, "none for long"),
        ({"idle": True, "in_state": 61.0}, Level.WARNING, "idle in its transaction for 61 s"),
        ({"idle": True, "in_state": 61.0, "ours": True}, Level.PROBLEM, "idle in its transaction for 61 s"),
        ({"idle": True, "in_state": 5.0, "ours": True}, Level.OK, "none for long"),
        ({"seconds": None, "in_state": None, "held": 1_000_001}, Level.WARNING, "what 1000001 transactions have left"),
    ],
)
def test_transactions(row: dict[str, Any], level: Level, words: str) -> None:
    finding = evaluate_transactions([transaction(), transaction(**row)][1:], Thresholds())
    assert (finding.level, words in finding.found) == (level, True), finding


def test_what_another_role_may_not_see_is_told() -> None:
    finding = evaluate_transactions([transaction(), transaction(seconds=None, in_state=None)], Thresholds())
    assert (finding.level, "of 1 it can't be told" in finding.found) == (Level.OK, True)


def test_our_own_idle_transaction_is_told_before_others() -> None:
    rows = [transaction(idle=True, in_state=900.0), transaction(idle=True, in_state=61.0, ours=True)]
    assert evaluate_transactions(rows, Thresholds()).level is Level.PROBLEM


ON_TIME = [0.01, 0.26, 0.51, 0.76]
AT_ONCE = [0.77, 0.77, 0.78, 0.78]
WELL = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}


@pytest.mark.parametrize(
    ("pings", "headers", "level", "words"),
    [
        (
            ON_TIME,
            WELL,
            Level.OK,
            "nothing buffers; the first frame came after 10 ms, the next ones 250, 250, 250 ms apart",
        ),
        (ON_TIME, {"cache-control": "no-transform"}, Level.OK, "a proxy has heeded X-Accel-Buffering"),
        (ON_TIME, {**WELL, "content-encoding": "br"}, Level.WARNING, "compressed with br"),
        (ON_TIME, {"x-accel-buffering": "no"}, Level.WARNING, "no-transform away"),
        (AT_ONCE, WELL, Level.PROBLEM, "streams are buffered: "),
        (AT_ONCE, {**WELL, "via": "1.1 cache"}, Level.PROBLEM, "streams are buffered (1.1 cache): "),
        (AT_ONCE, {**WELL, "content-encoding": "gzip"}, Level.PROBLEM, "buffered and compressed with gzip"),
        ([], WELL, Level.WARNING, "status 200 and 0 of 4 pings"),
        (ON_TIME[:3], WELL, Level.WARNING, "status 200 and 3 of 4 pings"),
    ],
)
def test_how_a_probe_came_through(pings: list[float], headers: dict[str, str], level: Level, words: str) -> None:
    arrival = ProbeTiming(200, httpx.Headers(headers), 0.005, pings)
    finding = evaluate_probe(arrival)
    assert (finding.level, words in finding.found) == (level, True), finding
    assert is_buffered(arrival) is (level is Level.PROBLEM)

from __future__ import annotations

import pytest

from stream_server.cli.doctor.airflow_schema import (
    RELEASE_REVISIONS,
    REQUIRED_COLUMNS,
    VERSION_COLUMNS,
    evaluate_schema,
)
from stream_server.cli.doctor.report import Level

COLUMNS = {(table, name) for table, names in REQUIRED_COLUMNS.items() for name in names}


@pytest.mark.parametrize(("newer_columns", "version"), [(0, "3.0"), (1, "3.1"), (2, "3.2"), (3, "3.3")])
def test_version_is_detected_by_columns(newer_columns: int, version: str) -> None:
    columns = COLUMNS | {(table, name) for table, name, _ in VERSION_COLUMNS[len(VERSION_COLUMNS) - newer_columns :]}
    finding = evaluate_schema("public", columns, None)
    assert (finding.level, finding.facts["version"]) == (Level.OK, version)


@pytest.mark.parametrize("revision", RELEASE_REVISIONS)
def test_revision_of_a_release_is_ok(revision: str) -> None:
    assert evaluate_schema("public", COLUMNS, revision).level is Level.OK


def test_unknown_revision_is_a_warning() -> None:
    assert evaluate_schema("public", COLUMNS, "abc").level is Level.WARNING


@pytest.mark.parametrize("column", sorted(COLUMNS))
def test_each_missing_column_is_a_problem(column: tuple[str, str]) -> None:
    finding = evaluate_schema("public", COLUMNS - {column}, None)
    assert (finding.level, ".".join(column) in finding.found) == (Level.PROBLEM, True)


def test_database_without_airflow_is_a_problem() -> None:
    finding = evaluate_schema("public", set(), None)
    assert finding.level is Level.PROBLEM
    assert "lacks tables of Airflow (dag_run, serialized_dag, task_instance, xcom)" in finding.found

from __future__ import annotations

import pytest

from stream_server.cli.doctor.airflow_schema import evaluate_schema
from stream_server.cli.doctor.report import Finding, Level
from stream_server.journal.airflow_tables import (
    MAP_INDEX_COLUMNS,
    RELEASE_REVISIONS,
    TRY_COLUMNS,
    VERSION_COLUMNS,
    AirflowTables,
)

Column = tuple[str, str]
SHAPES = {
    name: frozenset((table, column) for table, columns in shape.items() for column in columns)
    for name, shape in {"3.3": MAP_INDEX_COLUMNS, "3.4": TRY_COLUMNS}.items()
}
REQUIRED = [(name, column) for name, shape in SHAPES.items() for column in sorted(shape)]


def finding_about(columns: frozenset[Column], revision: str | None = None) -> Finding:
    return evaluate_schema(AirflowTables("public", columns, revision))


@pytest.mark.parametrize(("newer_columns", "version"), [(0, "3.0"), (1, "3.1"), (2, "3.2"), (3, "3.3")])
def test_version_is_detected_by_columns(newer_columns: int, version: str) -> None:
    newer = {(table, name) for table, name, _ in VERSION_COLUMNS[len(VERSION_COLUMNS) - newer_columns :]}
    finding = finding_about(SHAPES["3.3"] | newer)
    assert (finding.level, finding.facts["version"]) == (Level.OK, version)


def test_tries_as_rows_are_those_of_the_newest_version() -> None:
    assert finding_about(SHAPES["3.4"]).facts["version"] == "3.4"


@pytest.mark.parametrize("revision", RELEASE_REVISIONS)
def test_revision_of_a_release_is_ok(revision: str) -> None:
    assert finding_about(SHAPES["3.3"], revision).level is Level.OK


def test_unknown_revision_is_a_warning() -> None:
    assert finding_about(SHAPES["3.3"], "abc").level is Level.WARNING


@pytest.mark.parametrize(("shape", "column"), REQUIRED)
def test_each_missing_column_is_a_problem(shape: str, column: Column) -> None:
    finding = finding_about(SHAPES[shape] - {column})
    assert (finding.level, ".".join(column) in finding.found) == (Level.PROBLEM, True)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_missing_table_is_a_problem(shape: str) -> None:
    for table in {table for table, _ in SHAPES[shape]}:
        columns = frozenset(column for column in SHAPES[shape] if column[0] != table)
        finding = finding_about(columns)
        assert (finding.level, table in finding.found) == (Level.PROBLEM, True)


def test_the_advice_for_a_newer_airflow_is_not_to_migrate_it() -> None:
    tables = AirflowTables("public", SHAPES["3.4"] - {("task_instance", "working_set")}, "abc")
    problem = tables.describe_problem() or ""
    assert "lack task_instance.working_set (revision abc); upgrade stream-server" in problem


def test_database_without_airflow_is_a_problem() -> None:
    finding = finding_about(frozenset())
    assert finding.level is Level.PROBLEM
    assert "lacks tables of Airflow (dag_run, serialized_dag, task_instance" in finding.found

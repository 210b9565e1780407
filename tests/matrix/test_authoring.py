"""DAG files with result marks, parsed and serialised by each version of Airflow, with the base distribution only."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from matrix.airflow_processes import NEWEST, AirflowProcesses
from matrix.environments import HAS_UPCOMING, UPCOMING
from matrix.upgraded_databases import VERSIONS
from stream_server.domain.graph import Graph
from support import authoring_forms

READERS = (*VERSIONS, *((UPCOMING,) if HAS_UPCOMING else ()))

SCRIPT = Path(__file__).with_name("read_dags.py")

MODULES = (
    *("agent_output", "dag", "decorators", "errors", "function_source", "output", "output_buffer", "push_pacing"),
    *("result_marks", "stream"),
)
OURS = {"", ".authoring", *(f".authoring.{name}" for name in MODULES)}
"""Modules below `stream_server` that a DAG file may import."""

OURS_SHOWN = "@task.stream"
"""Operator name of `@task.stream` in Airflow's UI."""

STREAMING = {"text", "returns", "async", "mapped", "plain", "operator", "iterator", "tokens", "retry"}
"""Forms in which a task emits output (`airflow/dags/streaming_forms.py`)."""

Found = dict[str, Any]


def invalid_dags(version: str) -> dict[str, authoring_forms.InvalidDag]:
    """Return the DAG files that a version must refuse."""
    return {
        **authoring_forms.INVALID_DAGS,
        **(authoring_forms.INVALID_WITH_NATIVE_MARKS if version in {NEWEST, UPCOMING} else {}),
        **(authoring_forms.INVALID_WITH_LOOPS if version == UPCOMING else {}),
    }


@pytest.fixture(scope="module")
def read(airflow_processes: AirflowProcesses, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """A function that returns how a version parses all forms and invalid files, in a process without a database."""

    @cache
    def read_all(version: str) -> Found:
        folder = tmp_path_factory.mktemp(f"airflow-{version}")
        broken = folder / "dags"
        broken.mkdir()
        authoring_forms.write_invalid_dags(broken, invalid_dags(version))
        output = folder / "found.json"
        airflow_processes.run(
            version,
            SCRIPT,
            *(str(output), str(authoring_forms.DAGS), str(broken)),
            AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{folder / 'missing.db'}",
        )
        return dict(json.loads(output.read_text()))

    return read_all


def test_the_base_distribution_has_no_dependencies(base_distribution: Path) -> None:
    names = {path.name.partition("-")[0] for path in base_distribution.glob("[!.]*")}
    assert names == {"airflow_stream_server", "bin", "stream_server"}


@pytest.mark.parametrize("version", READERS)
def test_forms_are_serialised_with_their_marks(version: str, read: Callable[[str], Found]) -> None:
    found = read(version)
    dags = {dag_id: dag for dag_id, dag in found["dags"].items() if dag_id.startswith(authoring_forms.PREFIX)}
    assert {dag_id: authoring_forms.tagged_tasks(dag) for dag_id, dag in dags.items()} == authoring_forms.TAGGED
    assert {
        dag_id: authoring_forms.tasks_marked_by_params(dag) for dag_id, dag in dags.items()
    } == authoring_forms.PARAMS
    seen = {dag_id: Graph.parse(json.dumps(dag)).marked_tasks for dag_id, dag in dags.items()}
    assert seen == {dag_id: frozenset(results) for dag_id, results in authoring_forms.RESULTS.items()}
    assert "kept" in dags["form_dag_arguments"]["dag"]["tags"]


@pytest.mark.parametrize("version", READERS)
def test_streaming_forms_are_serialised(version: str, read: Callable[[str], Found]) -> None:
    found = {dag_id.removeprefix("stream_"): dag for dag_id, dag in read(version)["dags"].items()}
    assert found.keys() >= STREAMING
    shown = {name: found[name]["dag"]["tasks"][0]["__var"].get("_operator_name") for name in STREAMING}
    assert {name for name, kind in shown.items() if kind == OURS_SHOWN} == STREAMING - {"plain", "operator"}
    assert Graph.parse(json.dumps(found["text"])).marked_tasks == {"text"}


@pytest.mark.parametrize("version", READERS)
def test_dags_and_tasks_have_airflows_own_types(version: str, read: Callable[[str], Found]) -> None:
    for dag_id, serialized in read(version)["dags"].items():
        dag = serialized["dag"]
        assert Path(dag["fileloc"]).parent == authoring_forms.DAGS, dag_id
        tasks = [task["__var"] for task in dag["tasks"] if task["__var"].get("_operator_name") != OURS_SHOWN]
        assert not [task for task in tasks if task["_task_module"].startswith("stream_server")]


@pytest.mark.parametrize("version", READERS)
def test_a_mark_is_shown_in_the_documentation_of_the_task(version: str, read: Callable[[str], Found]) -> None:
    def documentation(dag_id: str, task_id: str) -> list[str]:
        tasks = [operator["__var"] for operator in read(version)["dags"][dag_id]["dag"]["tasks"]]
        (task,) = [task for task in tasks if task["task_id"] == task_id]
        return str(task.get("doc_md") or task["partial_kwargs"]["doc_md"]).split("\n\n")

    note = "**Result task**: its return value is the result of the DAG run (stream_server)."
    assert documentation("form_decorator", "fetch") == ["Fetch the answer.", note]
    assert documentation("form_override", "renamed") == ["Own words.", note]
    assert documentation("form_mapped", "multiply") == [note]


@pytest.mark.parametrize("version", READERS)
def test_every_mistake_is_reported_when_the_file_is_parsed(version: str, read: Callable[[str], Found]) -> None:
    errors = {name.removesuffix(".py"): text.strip() for name, text in read(version)["errors"].items()}
    expected = invalid_dags(version)
    assert errors.keys() == expected.keys()
    wrong = {name: text for name, text in errors.items() if not text.endswith(expected[name].error)}
    assert wrong == {}


@pytest.mark.parametrize("version", READERS)
def test_dag_file_imports_no_server_module(version: str, read: Callable[[str], Found]) -> None:
    ours = {name.removeprefix("stream_server") for name in read(version)["modules"] if name.startswith("stream_server")}
    assert ours == OURS | {".airflow_provider"}

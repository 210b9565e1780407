from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.graph import Graph
from support.airflow_sql import CHAIN, serialized_dag
from support.builders import graph


class Operator(NamedTuple):
    """The attributes that `DagRun._tis_for_dagrun_state` reads."""

    task_id: str
    downstream_task_ids: list[str]
    is_teardown: bool
    on_failure_fail_dagrun: bool


def airflows_leaves(dag: Mapping[str, Operator]) -> set[str]:
    """`DagRun._tis_for_dagrun_state` of Airflow 3.3.2, unchanged, up to the task ids."""

    def is_effective_leaf(task: Operator) -> bool:
        for down_task_id in task.downstream_task_ids:
            down_task = dag[down_task_id]
            if not down_task.is_teardown or down_task.on_failure_fail_dagrun:
                return False
        return not task.is_teardown or task.on_failure_fail_dagrun

    leaf_task_ids = {x.task_id for x in dag.values() if is_effective_leaf(x)}
    if not leaf_task_ids:
        leaf_task_ids = {x.task_id for x in dag.values() if not x.downstream_task_ids}
    return leaf_task_ids


@st.composite
def dags(draw: st.DrawFn) -> dict[str, Operator]:
    """Any DAG: edges go from lower to higher numbers."""
    size = draw(st.integers(0, 7))
    return {
        f"t{number}": Operator(
            f"t{number}",
            [f"t{below}" for below in range(number + 1, size) if draw(st.booleans())],
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for number in range(size)
    }


def parsed(dag: Mapping[str, Operator]) -> Graph:
    return Graph.parse(
        json.dumps({"dag": {"tasks": [{"__type": "operator", "__var": task._asdict()} for task in dag.values()]}})
    )


@given(dags())
def test_effective_leaves_equal_those_of_airflow(dag: dict[str, Operator]) -> None:
    assert parsed(dag).effective_leaves == airflows_leaves(dag)


@given(dags())
def test_only_leaf_is_never_a_teardown(dag: dict[str, Operator]) -> None:
    leaf = parsed(dag).only_leaf
    assert leaf is None or not dag[leaf].is_teardown


@given(dags())
def test_only_leaf_equals_the_only_effective_leaf_if_no_teardown_can_fail_the_run(
    dag: dict[str, Operator],
) -> None:
    dag = {task_id: task._replace(on_failure_fail_dagrun=False) for task_id, task in dag.items()}
    leaves = {task_id for task_id in airflows_leaves(dag) if not dag[task_id].is_teardown}
    assert parsed(dag).only_leaf == (next(iter(leaves)) if len(leaves) == 1 else None)


def version_2(dag: dict[str, Any]) -> dict[str, Any]:
    """As 3.0.6 writes it: empty and false members are present."""
    for operator in dag["dag"]["tasks"]:
        operator["__var"] = {
            "downstream_task_ids": [],
            "is_setup": False,
            "is_teardown": False,
            "on_failure_fail_dagrun": False,
            **operator["__var"],
        }
    return {**dag, "__version": 2}


def version_3(dag: dict[str, Any]) -> dict[str, Any]:
    """As 3.1 and later write it: empty and false members are absent."""
    return {**dag, "__version": 3}


@pytest.mark.parametrize("version", [version_2, version_3])
@pytest.mark.parametrize("compressed", [False, True])
def test_parses_what_airflow_serialises(version: Any, *, compressed: bool) -> None:
    text = json.dumps(version(serialized_dag("ask_llm", CHAIN, {"clean_up": False})))
    read = Graph.parse(None, zlib.compress(text.encode())) if compressed else Graph.parse(text)
    assert read.tasks.keys() == CHAIN.keys()
    assert read.tasks["ask"].downstream_task_ids == ["answer"]
    assert read.tasks["clean_up"].is_teardown
    assert read.effective_leaves == {"answer"}
    assert read.only_leaf == "answer"


def test_mapped_operator_is_parsed_as_a_task() -> None:
    dag = {"tasks": [{"__var": {"task_id": "square", "_is_mapped": True, "partial_kwargs": {"retries": 1}}}]}
    assert Graph.parse(json.dumps({"dag": dag})).only_leaf == "square"


@pytest.mark.parametrize(
    ("tasks", "teardowns", "leaves", "only"),
    [
        pytest.param({"a": ["b", "c"], "b": [], "c": []}, {}, {"b", "c"}, None, id="two leaves"),
        pytest.param({"a": []}, {}, {"a"}, "a", id="one task"),
        pytest.param({"a": ["t"], "t": []}, {"t": True}, {"t"}, "a", id="a teardown that may fail the run"),
        pytest.param({"a": ["t"], "t": ["u"], "u": []}, {"t": False, "u": False}, {"a"}, "a", id="two teardowns"),
        pytest.param({"t": ["u"], "u": []}, {"t": False, "u": False}, {"u"}, None, id="teardowns alone"),
        pytest.param({"a": ["t"], "t": ["b"], "b": []}, {"t": False}, {"a", "b"}, None, id="a task below a teardown"),
        pytest.param({}, {}, set(), None, id="no task"),
    ],
)
def test_leaves(tasks: dict[str, list[str]], teardowns: dict[str, bool], leaves: set[str], only: str | None) -> None:
    read = graph(tasks, teardowns)
    assert (set(read.effective_leaves), read.only_leaf) == (leaves, only)


def nested_groups(depth: int) -> str:
    """Return a document with task groups in each other."""
    return (
        '{"dag": {"tasks": [], "task_group": '
        + '{"children": {"g": ["taskgroup", ' * depth
        + "{}"
        + "]}}" * depth
        + "}}"
    )


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '{"dag": {"tasks": [{}]}}', '{"dag": {"tasks": {}}}'])
def test_malformed_document_is_refused(text: str | None) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Graph.parse(text)


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_document_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Graph.parse(nested_groups(depth))


def test_document_that_is_nested_less_is_parsed() -> None:
    assert len(Graph.parse(nested_groups(50)).task_groups.groups) == 50


def test_compressed_document_that_is_cut_off_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        Graph.parse(None, zlib.compress(b'{"dag": {"tasks": []}}')[:-3])

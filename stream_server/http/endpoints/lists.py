"""Endpoints of the pages' lists: runs, DAGs, and the graph of a DAG."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.domain.graph import Graph, Task
from stream_server.domain.outcome import WatchOptions, select_result_tasks
from stream_server.domain.task_groups import TaskGroups
from stream_server.errors import BadParameter, JournalMissing
from stream_server.http.caller import caller_of
from stream_server.http.params import number, refuse_unknown, run_key
from stream_server.http.state import State
from stream_server.hub.firehose import ReadPermissions, Resource
from stream_server.journal.run_lists import read_recent_runs, read_tagged_dags
from stream_server.protocol.bodies import DagItem, DagList, Edge, Node, NodeGroup, RunItem, RunList, Structure
from stream_server.protocol.cursor import ResumeToken


def build_structure(dag_id: str, run_id: str, graph: Graph, answering: Collection[str]) -> Structure:
    """Return the structure of a run.

    Args:
        dag_id: The DAG.
        run_id: The run.
        graph: The structure of the DAG.
        answering: The tasks that answer.
    """
    return Structure(
        dag_id=dag_id,
        run_id=run_id,
        nodes=[_build_node(graph.tasks[task_id], graph.task_groups, answering) for task_id in graph.topological_order],
        groups=[
            NodeGroup(group_id=group.group_id, parent_id=group.parent_id, is_mapped=group.is_mapped)
            for group in graph.task_groups.groups
        ],
        edges=[
            Edge(source=task_id, target=below)
            for task_id in graph.topological_order
            for below in graph.downstream(task_id)
        ],
    )


def build_structure_without_edges(
    dag_id: str, run_id: str, task_ids: Collection[str], answering: Collection[str]
) -> Structure:
    """Return what is known of a run whose DAG Airflow has forgotten: its tasks, and not their order."""
    return build_structure(dag_id, run_id, Graph([Task(task_id) for task_id in sorted(task_ids)]), answering)


def _build_node(task: Task, tree: TaskGroups, answering: Collection[str]) -> Node:
    return Node(
        task_id=task.task_id,
        group_id=tree.group_of_task.get(task.task_id),
        operator=task.operator,
        is_mapped=task.is_mapped,
        is_setup=task.is_setup,
        is_teardown=task.is_teardown,
        is_result=task.task_id in answering,
    )


MAX_READS = 5
"""How often more runs are read where the caller may not read most of them."""

Item = TypeVar("Item", RunItem, DagItem)


async def list_runs(request: Request) -> Response:
    """Answer with the youngest runs."""
    refuse_unknown(request.query_params.keys(), frozenset({"limit", "dag_id"}))
    state: State = request.scope["state"]
    limit = number(request, "limit", DEFAULT_RUN_LIMIT, *RUN_LIMIT_BOUNDS)
    dag_id = request.query_params.get("dag_id")
    readable = await _load_read_permissions(request)
    read = await read_recent_runs(state["runs"], dag_id, limit)
    cursor = read.position
    if cursor is None:
        raise JournalMissing("The journal is not whole; run `stream-server install`")
    found = await _filter_readable(readable, read.runs)
    for _ in range(MAX_READS):
        if len(found) >= limit or read.next_before is None:
            break
        read = await read_recent_runs(state["runs"], dag_id, limit, read.next_before)
        found += await _filter_readable(readable, read.runs)
    return _json_response(RunList(runs=found[:limit], cursor=str(ResumeToken(cursor))))


async def list_dags(request: Request) -> Response:
    """Answer with the DAGs that bear a tag."""
    refuse_unknown(request.query_params.keys(), frozenset({"tag"}))
    state: State = request.scope["state"]
    tag = request.query_params.get("tag")
    if not tag:
        raise BadParameter("tag= is missing; it names the tag that the DAGs bear")
    readable = await _load_read_permissions(request)
    return _json_response(DagList(dags=await _filter_readable(readable, await read_tagged_dags(state["runs"], tag))))


async def get_run_graph(request: Request) -> Response:
    """Answer with the structure of a run's DAG."""
    refuse_unknown(request.query_params.keys(), frozenset())
    state: State = request.scope["state"]
    key = run_key(request)
    await state["authorizer"].check_run(await caller_of(request), key)
    run, _ = await state["runs"].read_run(key)
    answering = select_result_tasks(run, WatchOptions())
    if run.graph is None:
        return _json_response(build_structure_without_edges(*key, run.tasks.keys(), answering))
    return _json_response(build_structure(*key, run.graph, answering))


async def _load_read_permissions(request: Request) -> ReadPermissions | None:
    """Return what the caller may read; `None` for all."""
    state: State = request.scope["state"]
    caller = await caller_of(request)
    await state["authorizer"].check_dags(caller)
    return state["authorizer"].readable_dags(caller)


async def _filter_readable(readable: ReadPermissions | None, items: list[Item]) -> list[Item]:
    """Return those of a list that may be told of."""
    if readable is None:
        return items
    allowed = await readable.filter_readable({Resource(item.dag_id) for item in items})
    return [item for item in items if Resource(item.dag_id) in allowed]


def _json_response(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


DEFAULT_RUN_LIMIT = 50
RUN_LIMIT_BOUNDS = (1, 200)
"""How many runs are listed, and bounds of what can be asked for."""

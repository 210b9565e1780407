"""`GET /api/v2/stream/runs`, `GET /api/v2/stream/dags` and `GET …/dagRuns/{run_id}/graph`, for the web pages."""

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
from stream_server.http.caller import identify_caller
from stream_server.http.params import parse_integer, parse_run_key, refuse_unknown_parameters
from stream_server.http.state import State
from stream_server.hub.filters import ReadPermissions, Resource
from stream_server.journal.run_lists import read_recent_runs, read_tagged_dags
from stream_server.protocol.bodies import DagItem, DagList, Edge, Node, NodeGroup, RunItem, RunList, Structure
from stream_server.protocol.cursor import ResumeToken

DEFAULT_RUN_LIMIT = 50
RUN_LIMIT_BOUNDS = (1, 200)
"""Smallest and largest `limit`."""

MAX_READS = 5
"""Maximum number of further reads when the caller may not read most runs."""

Item = TypeVar("Item", RunItem, DagItem)


def build_structure(dag_id: str, run_id: str, graph: Graph, result_tasks: Collection[str]) -> Structure:
    return Structure(
        dag_id=dag_id,
        run_id=run_id,
        nodes=[
            _build_node(graph.tasks[task_id], graph.task_groups, result_tasks) for task_id in graph.topological_order
        ],
        groups=[
            NodeGroup(group_id=group.group_id, parent_id=group.parent_id, is_mapped=group.is_mapped)
            for group in graph.task_groups.groups
        ],
        edges=[
            Edge(source=task_id, target=downstream_id)
            for task_id in graph.topological_order
            for downstream_id in graph.downstream(task_id)
        ],
    )


def build_structure_without_edges(
    dag_id: str, run_id: str, task_ids: Collection[str], result_tasks: Collection[str]
) -> Structure:
    """Return the tasks of a run, without edges: Airflow no longer has the serialized DAG."""
    return build_structure(dag_id, run_id, Graph([Task(task_id) for task_id in sorted(task_ids)]), result_tasks)


def _build_node(task: Task, groups: TaskGroups, result_tasks: Collection[str]) -> Node:
    return Node(
        task_id=task.task_id,
        group_id=groups.group_of_task.get(task.task_id),
        operator=task.operator,
        is_mapped=task.is_mapped,
        is_setup=task.is_setup,
        is_teardown=task.is_teardown,
        is_result=task.task_id in result_tasks,
    )


async def list_runs(request: Request) -> Response:
    refuse_unknown_parameters(request.query_params.keys(), frozenset({"limit", "dag_id"}))
    state: State = request.scope["state"]
    limit = parse_integer(request, "limit", DEFAULT_RUN_LIMIT, *RUN_LIMIT_BOUNDS)
    dag_id = _parse_name(request, "dag_id")
    readable = await _load_read_permissions(request)
    read = await read_recent_runs(state["run_store"], dag_id, limit)
    cursor = read.position
    if cursor is None:
        raise JournalMissing("The journal is incomplete; run `stream-server install`")
    found = await _filter_readable(readable, read.runs)
    for _ in range(MAX_READS):
        if len(found) >= limit or read.next_before is None:
            break
        read = await read_recent_runs(state["run_store"], dag_id, limit, read.next_before)
        found += await _filter_readable(readable, read.runs)
    return _json_response(RunList(runs=found[:limit], cursor=str(ResumeToken(cursor))))


async def list_dags(request: Request) -> Response:
    refuse_unknown_parameters(request.query_params.keys(), frozenset({"tag"}))
    state: State = request.scope["state"]
    tag = _parse_name(request, "tag")
    if tag is None:
        raise BadParameter("`tag` is required: the tag of the DAGs to list")
    readable = await _load_read_permissions(request)
    return _json_response(
        DagList(dags=await _filter_readable(readable, await read_tagged_dags(state["run_store"], tag)))
    )


async def get_run_graph(request: Request) -> Response:
    refuse_unknown_parameters(request.query_params.keys(), frozenset())
    state: State = request.scope["state"]
    key = parse_run_key(request)
    await state["authorizer"].check_run(await identify_caller(request), key)
    run, _ = await state["run_store"].read_run(key)
    result_tasks = select_result_tasks(run, WatchOptions())
    if run.graph is None:
        return _json_response(build_structure_without_edges(*key, run.tasks.keys(), result_tasks))
    return _json_response(build_structure(*key, run.graph, result_tasks))


def _parse_name(request: Request, name: str) -> str | None:
    values = request.query_params.getlist(name)
    if len(values) > 1 or "" in values:
        raise BadParameter(f"`{name}` must be given once, and not be empty")
    return values[0] if values else None


async def _load_read_permissions(request: Request) -> ReadPermissions | None:
    """Return what the caller may read; `None` means everything."""
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    await state["authorizer"].check_dags(caller)
    return state["authorizer"].readable_dags(caller)


async def _filter_readable(readable: ReadPermissions | None, items: list[Item]) -> list[Item]:
    if readable is None:
        return items
    allowed = await readable.filter_readable({Resource(item.dag_id) for item in items})
    return [item for item in items if Resource(item.dag_id) in allowed]


def _json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json", headers={"Cache-Control": "no-store"})

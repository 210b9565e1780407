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
from stream_server.journal import run_lists as listing
from stream_server.protocol.bodies import DagItem, DagList, Edge, Node, NodeGroup, RunItem, RunList, Structure
from stream_server.protocol.cursor import ResumeToken


def structure(dag_id: str, run_id: str, graph: Graph, answering: Collection[str]) -> Structure:
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
        nodes=[_node(graph.tasks[task_id], graph.task_groups, answering) for task_id in graph.topological_order],
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


def unknown_structure(dag_id: str, run_id: str, task_ids: Collection[str], answering: Collection[str]) -> Structure:
    """Return what is known of a run whose DAG Airflow has forgotten: its tasks, and not their order."""
    return structure(dag_id, run_id, Graph([Task(task_id) for task_id in sorted(task_ids)]), answering)


def _node(task: Task, tree: TaskGroups, answering: Collection[str]) -> Node:
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


async def runs(request: Request) -> Response:
    """Answer with the youngest runs."""
    refuse_unknown(request.query_params.keys(), frozenset({"limit", "dag_id"}))
    state: State = request.scope["state"]
    limit = number(request, "limit", LIMIT, *LIMITS)
    dag_id = request.query_params.get("dag_id")
    readable = await _readable(request)
    read = await listing.read_recent_runs(state["runs"], dag_id, limit)
    cursor = read.position
    if cursor is None:
        raise JournalMissing("The journal is not whole; run `stream-server install`")
    found = await _allowed(readable, read.runs)
    for _ in range(MAX_READS):
        if len(found) >= limit or read.next_before is None:
            break
        read = await listing.read_recent_runs(state["runs"], dag_id, limit, read.next_before)
        found += await _allowed(readable, read.runs)
    return _answer(RunList(runs=found[:limit], cursor=str(ResumeToken(cursor))))


async def dags(request: Request) -> Response:
    """Answer with the DAGs that bear a tag."""
    refuse_unknown(request.query_params.keys(), frozenset({"tag"}))
    state: State = request.scope["state"]
    tag = request.query_params.get("tag")
    if not tag:
        raise BadParameter("tag= is missing; it names the tag that the DAGs bear")
    readable = await _readable(request)
    return _answer(DagList(dags=await _allowed(readable, await listing.read_tagged_dags(state["runs"], tag))))


async def graph(request: Request) -> Response:
    """Answer with the structure of a run's DAG."""
    refuse_unknown(request.query_params.keys(), frozenset())
    state: State = request.scope["state"]
    key = run_key(request)
    await state["authorizer"].check_run(await caller_of(request), key)
    run, _ = await state["runs"].read_run(key)
    answering = select_result_tasks(run, WatchOptions())
    if run.graph is None:
        return _answer(unknown_structure(*key, run.tasks.keys(), answering))
    return _answer(structure(*key, run.graph, answering))


async def _readable(request: Request) -> ReadPermissions | None:
    """Return what the caller may read; `None` for all."""
    authorizer, caller = request.scope["state"]["authorizer"], await caller_of(request)
    await authorizer.dags(caller)
    readable: ReadPermissions | None = authorizer.readable(caller)
    return readable


async def _allowed(readable: ReadPermissions | None, items: list[Item]) -> list[Item]:
    """Return those of a list that may be told of."""
    if readable is None:
        return items
    allowed = await readable.filter_readable({Resource(item.dag_id) for item in items})
    return [item for item in items if Resource(item.dag_id) in allowed]


def _answer(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


LIMIT = 50
LIMITS = (1, 200)
"""How many runs are listed, and bounds of what can be asked for."""

"""What the pages ask for beside streams. Everybody is told of what he may read, and of nothing else."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.errors import BadParameter, JournalMissing
from stream_server.firehose import Readable, Reading
from stream_server.journal import listing
from stream_server.listings import DagItem, DagList, RunItem, RunList, structure, unknown_structure
from stream_server.outcome import Question, result_tasks
from stream_server.transports.caller import caller_of
from stream_server.transports.parameters import LIMIT, LIMITS
from stream_server.transports.request import State, number, refuse_unknown, run_key

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
    read = await listing.recent_runs(state["runs"], dag_id, limit)
    cursor = read.cursor
    if cursor is None:
        raise JournalMissing("The journal is not whole; run `stream-server install`")
    found = await _allowed(readable, read.runs)
    for _ in range(MAX_READS):
        if len(found) >= limit or read.before is None:
            break
        read = await listing.recent_runs(state["runs"], dag_id, limit, read.before)
        found += await _allowed(readable, read.runs)
    return _answer(RunList(runs=found[:limit], cursor=str(cursor)))


async def dags(request: Request) -> Response:
    """Answer with the DAGs that bear a tag."""
    refuse_unknown(request.query_params.keys(), frozenset({"tag"}))
    state: State = request.scope["state"]
    tag = request.query_params.get("tag")
    if not tag:
        raise BadParameter("tag= is missing; it names the tag that the DAGs bear")
    readable = await _readable(request)
    return _answer(DagList(dags=await _allowed(readable, await listing.dags_to_choose(state["runs"], tag))))


async def graph(request: Request) -> Response:
    """Answer with the structure of a run's DAG."""
    refuse_unknown(request.query_params.keys(), frozenset())
    state: State = request.scope["state"]
    key = run_key(request)
    await state["authorizer"].run(await caller_of(request), key)
    run, _ = await state["runs"].run_state(key)
    answering = result_tasks(run, Question())
    if run.graph is None:
        return _answer(unknown_structure(*key, run.tasks.keys(), answering))
    return _answer(structure(*key, run.graph, answering))


async def _readable(request: Request) -> Readable | None:
    """Return what the caller may read; `None` for all."""
    authorizer, caller = request.scope["state"]["authorizer"], await caller_of(request)
    await authorizer.dags(caller)
    readable: Readable | None = authorizer.readable(caller)
    return readable


async def _allowed(readable: Readable | None, items: list[Item]) -> list[Item]:
    """Return those of a list that may be told of."""
    if readable is None:
        return items
    allowed = await readable.among({Reading(item.dag_id) for item in items})
    return [item for item in items if Reading(item.dag_id) in allowed]


def _answer(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})

"""Reading the requests for human input that the rows of a batch announce.

A row of kind `input` has only the id of a task instance: the request is read as it is now. The same row of the database
has the answer, so that a request may be answered by the time it is read; see `domain.human_input`.

When a task starts to wait, its request is read again: then its deadline is known, and a new try may have taken over the
request of an earlier one, which writes no row.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg

from stream_server.domain.human_input import RequestRecord, is_open_row, parse_record
from stream_server.domain.transition import OPEN, Transition, TransitionKind
from stream_server.errors import JournalForbidden, JournalMissing
from stream_server.journal.connection import AnyConnection, map_postgres_errors
from stream_server.journal.undecodable_rows import LoggedCauses

log = logging.getLogger(__name__)

WAITING_STATES = frozenset({"awaiting_input", "deferred"})

InstanceName = tuple[str, str, str, int, int | None]
"""DAG, run, task, `map_index` and the iteration of a task loop."""

ReadRequests = Callable[[list[UUID], list[InstanceName]], Awaitable[Sequence[asyncpg.Record]]]
"""Reads the requests of task instances, by their ids and by their names."""

_logged_causes = LoggedCauses()


async def add_requests(transitions: Sequence[Transition], read_requests: ReadRequests) -> list[Transition]:
    """Return transitions with the requests that they announce, each once. Rows without a current request are left out.

    Args:
        transitions: Of one read.
        read_requests: Reads requests. If it may not, the batch goes on without them.
    """
    ids = {one.ti_id for one in transitions if one.ti_id is not None}
    names = {_name_of(one) for one in transitions if _starts_to_wait(one)}
    if not ids and not names:
        return [*transitions]
    requests = await _read_by_instance(list(ids), list(names), read_requests)
    found: list[Transition] = []
    seen = set[tuple[object, ...]]()
    for transition in transitions:
        if transition.kind is not TransitionKind.INPUT:
            found.append(transition)
        request = _find_request(transition, requests)
        if request is None:
            continue
        announcement = _announce(transition, request)
        identity = (request.record.dag_id, request.record.run_id, request.record.instance, request.record.identity)
        key = (*identity, is_open_row(announcement, request.record))
        if key not in seen:
            seen.add(key)
            found.append(announcement)
    return found


class _Request(NamedTuple):
    record: RequestRecord
    text: str


async def _read_by_instance(
    ids: list[UUID], names: list[InstanceName], read_requests: ReadRequests
) -> dict[UUID | InstanceName, _Request]:
    try:
        rows = await read_requests(ids, names)
    except (JournalForbidden, JournalMissing) as error:
        _log_once(str(error), "Requests for human input can't be read: %s", error)
        return {}
    requests: dict[UUID | InstanceName, _Request] = {}
    for row in rows:
        record = parse_request(row["ti_id"], row["record"])
        if record is not None:
            name = record.dag_id, record.run_id, *record.instance
            requests[row["ti_id"]] = requests[name] = _Request(record, row["record"])
    return requests


def _find_request(transition: Transition, requests: dict[UUID | InstanceName, _Request]) -> _Request | None:
    """Return the request that a row announces, if there is one: that of its id, or that of a task that starts to wait.

    The latter has a row of its own, unless its try has taken it over, so an answered one is not announced again.
    """
    if transition.ti_id is not None:
        return requests.get(transition.ti_id)
    if not _starts_to_wait(transition):
        return None
    request = requests.get(_name_of(transition))
    if request is None or request.record.try_number != transition.try_number:
        return None
    return request if request.record.answered_at is None or request.record.is_taken_over else None


def _announce(transition: Transition, request: _Request) -> Transition:
    """Return the transition of a request, at the row that announces it."""
    record = request.record
    return Transition(
        *transition[:3],
        kind=TransitionKind.INPUT,
        dag_id=record.dag_id,
        run_id=record.run_id,
        task_id=record.task_id,
        map_index=record.map_index,
        iteration=record.iteration,
        try_number=record.try_number,
        state=transition.state if transition.kind is TransitionKind.INPUT else OPEN,
        body=request.text,
    )


def parse_request(owner: object, text: str) -> RequestRecord | None:
    """Return a request; log one that can't be decoded, with its task instance or run, and return `None`."""
    record = parse_record(text)
    if record is None:
        _log_once(f"shape {owner}", "A request for human input of %s has another shape than Airflow's", owner)
    return record


async def fetch_requests(
    connection: AnyConnection, queries: dict[str, str], ids: list[UUID], names: list[InstanceName]
) -> Sequence[asyncpg.Record]:
    """Return the requests of task instances; none if this version of Airflow has no table for them."""
    if "human_input" not in queries:
        return ()
    columns = [list(column) for column in zip(*names, strict=True)] or [[], [], [], [], []]
    with map_postgres_errors():
        return await connection.fetch(queries["human_input"], ids, *columns)


def _log_once(cause: str, text: str, value: object) -> None:
    if _logged_causes.add_if_new(cause):
        log.warning(text, value, extra={"action": "input_unreadable"})


def _starts_to_wait(transition: Transition) -> bool:
    return transition.kind is TransitionKind.TASK and transition.state in WAITING_STATES


def _name_of(transition: Transition) -> InstanceName:
    assert transition.task_id is not None, "the journal names the task of every task transition"
    assert transition.map_index is not None, "task_instance.map_index is NOT NULL"
    return transition.dag_id, transition.run_id, transition.task_id, transition.map_index, transition.iteration

"""Which rows of a batch announce which requests for human input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import JournalForbidden
from stream_server.journal.human_input import InstanceName, add_requests
from support.builders import KEY, at

TI_ID = UUID(int=1)


def record(
    *, try_number: int = 1, answered: bool = False, is_taken_over: bool = False, iteration: int | None = None
) -> dict[str, Any]:
    text = {
        "dag_id": KEY.dag_id,
        "run_id": KEY.run_id,
        "task_id": "ask",
        "map_index": -1,
        "iteration": iteration,
        "try_number": try_number,
        "asked_at": at(1).isoformat(),
        "answered_at": at(9).isoformat() if answered else None,
        "bytes": 10,
        "is_taken_over": is_taken_over,
        "content": {"subject": "Go on?", "options": ["a"]},
    }
    return {"ti_id": TI_ID, "record": json.dumps(text)}


def task(seq: int, state: str, try_number: int = 1) -> Transition:
    return Transition(seq, seq, at(seq), TransitionKind.TASK, *KEY, "ask", -1, try_number, state)


def row(seq: int, state: str | None, ti_id: UUID = TI_ID) -> Transition:
    return Transition(seq, seq, at(seq), TransitionKind.INPUT, None, None, state=state, ti_id=ti_id)  # type: ignore[arg-type]


async def announced(rows: Sequence[Transition], *records: dict[str, Any]) -> list[tuple[int, str | None]]:
    """Return `seq` and state of the requests that rows announce."""

    async def read(_ids: list[UUID], _names: list[InstanceName]) -> Any:
        return records

    return [(one.seq, one.state) for one in await add_requests(rows, read) if one.kind is TransitionKind.INPUT]


async def test_a_request_is_announced_once_in_a_batch() -> None:
    rows = [task(1, "running"), row(2, "open"), task(3, "awaiting_input"), row(4, "answered")]
    assert await announced(rows, record()) == [(2, "open")]
    assert await announced(rows, record(answered=True)) == [(2, "open"), (4, "answered")]


async def test_a_task_that_starts_to_wait_announces_what_its_try_has_taken_over() -> None:
    rows = [task(3, "awaiting_input"), task(5, "restarting"), task(7, "deferred", 2), row(8, "answered")]
    taken_over = record(try_number=2, answered=True, is_taken_over=True)
    assert await announced(rows, taken_over) == [(7, "open"), (8, "answered")]
    assert await announced(rows, record(try_number=2)) == [(7, "open")]
    assert await announced(rows[:3], record(try_number=2, answered=True)) == []


async def test_a_task_that_starts_to_wait_announces_the_request_of_its_iteration() -> None:
    later = task(4, "awaiting_input")._replace(iteration=1)
    records = [record(iteration=0, answered=True, is_taken_over=True), record(iteration=1)]
    read_names: list[InstanceName] = []

    async def read(_ids: list[UUID], names: list[InstanceName]) -> Any:
        read_names.extend(names)
        return records

    found = await add_requests([later], read)
    assert read_names == [(*KEY, "ask", -1, 1)]
    assert [(one.seq, one.state, one.iteration) for one in found if one.kind is TransitionKind.INPUT] == [
        (4, "open", 1)
    ]


async def test_rows_of_other_tries_and_of_other_shapes_announce_nothing() -> None:
    assert await announced([row(1, "open", UUID(int=2))], record()) == []
    assert await announced([row(1, "open")], {"ti_id": TI_ID, "record": "{}"}) == []


async def test_a_batch_goes_on_without_requests_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    async def read(_ids: list[UUID], _names: list[InstanceName]) -> Any:
        raise JournalForbidden("The database role lacks a privilege: hitl_detail")

    found = await add_requests([row(1, "open"), task(2, "running")], read)
    assert [one.seq for one in found] == [2]
    assert "can't be read" in caplog.text

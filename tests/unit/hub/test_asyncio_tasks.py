from __future__ import annotations

import asyncio
import logging

import pytest

from stream_server.errors import Unavailable
from stream_server.hub.asyncio_tasks import TaskSet


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def test_tasks_are_named_and_cancelled_at_close() -> None:
    tasks = TaskSet("reader")
    task = tasks.start(wait_forever(), "of run r1")
    assert (len(tasks), task.get_name()) == (1, "reader of run r1")
    await tasks.aclose()
    assert (len(tasks), task.cancelled()) == (0, True)


async def test_join_waits_for_tasks_that_start_meanwhile() -> None:
    tasks, ended = TaskSet("reader"), []

    async def first() -> None:
        await asyncio.sleep(0)
        tasks.start(second())

    async def second() -> None:
        await asyncio.sleep(0)
        ended.append("second")

    tasks.start(first())
    await tasks.join()
    assert ended == ["second"]


@pytest.mark.parametrize(
    ("error", "level"), [(RuntimeError("unexpected"), logging.ERROR), (Unavailable("expected"), logging.DEBUG)]
)
async def test_errors_are_logged(caplog: pytest.LogCaptureFixture, error: Exception, level: int) -> None:
    caplog.set_level(logging.DEBUG, "stream_server.hub.asyncio_tasks")
    tasks = TaskSet("reader")
    tasks.start(fail(error), "of run r1")
    await tasks.join()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, "Task reader of run r1 failed")
    ]


async def test_on_end_is_called_for_each_end_but_not_for_cancellation_by_close() -> None:
    ended: list[asyncio.Task[None]] = []
    tasks = TaskSet("service", on_end=ended.append)
    tasks.start(wait_forever())
    task = tasks.start(asyncio.sleep(0))
    await asyncio.wait({task})
    await asyncio.sleep(0)
    assert ended == [task]
    await tasks.aclose()
    assert ended == [task]

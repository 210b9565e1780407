from __future__ import annotations

import asyncio

from stream_server.server.flow_control import ResumeEvent


async def test_event_is_set_until_it_is_cleared() -> None:
    event = ResumeEvent()
    assert event.is_set()
    assert await event.wait()
    event.clear()
    assert not event.is_set()


async def test_all_waiting_tasks_resume_when_the_event_is_set() -> None:
    event = ResumeEvent()
    event.clear()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    event.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [True] * 3


async def test_task_waits_on_if_the_event_is_cleared_before_it_runs() -> None:
    event = ResumeEvent()
    event.clear()
    waiting = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    event.set()
    event.clear()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    assert await asyncio.wait_for(waiting, 10)

from __future__ import annotations

import asyncio

from stream_server.server.flow_control import ResumeEvent


async def test_a_gate_is_open_until_it_is_shut() -> None:
    gate = ResumeEvent()
    assert gate.is_set()
    assert await gate.wait()
    gate.clear()
    assert not gate.is_set()


async def test_all_who_wait_pass_when_a_gate_is_opened() -> None:
    gate = ResumeEvent()
    gate.clear()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    gate.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [True] * 3


async def test_who_finds_a_gate_shut_again_waits_on() -> None:
    gate = ResumeEvent()
    gate.clear()
    waiting = asyncio.create_task(gate.wait())
    await asyncio.sleep(0)
    gate.set()
    gate.clear()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    assert await asyncio.wait_for(waiting, 10)

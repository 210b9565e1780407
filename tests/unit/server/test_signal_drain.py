"""Signals go to the server when its streams have been drained."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from stream_server.server.signal_drain import drain_on_signals
from support.waiting import eventually_async


class Signals:
    """A server's handlers of signals."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def handle(self, number: int, _frame: Any) -> None:
        self.heard.append(number)


@pytest.fixture
def signals() -> Iterator[Signals]:
    found = Signals()
    before = signal.signal(signal.SIGTERM, found.handle)
    yield found
    signal.signal(signal.SIGTERM, before)


async def test_a_second_signal_reaches_the_server_at_once(signals: Signals) -> None:
    drained = asyncio.Event()

    async def drain() -> None:
        await drained.wait()

    with drain_on_signals(drain):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert signals.heard == []
        signal.raise_signal(signal.SIGTERM)
        await eventually_async(lambda: signals.heard == [signal.SIGTERM])
        drained.set()
        await eventually_async(lambda: signals.heard == [signal.SIGTERM] * 2)
    signal.raise_signal(signal.SIGTERM)
    assert len(signals.heard) == 3


async def test_a_server_that_can_not_drain_stops_all_the_same(
    signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    with drain_on_signals(fail):
        signal.raise_signal(signal.SIGTERM)
        await eventually_async(lambda: signals.heard == [signal.SIGTERM])
    assert "Streams could not be drained" in caplog.text

"""The server's signal handlers run after the streams have been drained."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from stream_server.server.signal_drain import drain_on_signals
from support.waiting import eventually_async


class Signals:
    """Records the signals that reach the server's handler."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def handle(self, number: int, _frame: Any) -> None:
        self.received.append(number)


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    before = signal.signal(signal.SIGTERM, signals.handle)
    yield signals
    signal.signal(signal.SIGTERM, before)


async def test_second_signal_reaches_the_server_at_once(signals: Signals) -> None:
    is_drained = asyncio.Event()

    async def drain() -> None:
        await is_drained.wait()

    with drain_on_signals(drain):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert signals.received == []
        signal.raise_signal(signal.SIGTERM)
        await eventually_async(lambda: signals.received == [signal.SIGTERM])
        is_drained.set()
        await eventually_async(lambda: signals.received == [signal.SIGTERM] * 2)
    signal.raise_signal(signal.SIGTERM)
    assert len(signals.received) == 3


async def test_server_gets_the_signal_when_draining_fails(signals: Signals, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("no")

    with drain_on_signals(fail):
        signal.raise_signal(signal.SIGTERM)
        await eventually_async(lambda: signals.received == [signal.SIGTERM])
    assert "Draining the streams failed" in caplog.text

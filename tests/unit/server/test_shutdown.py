from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from stream_server.server.main import DrainingServer, build_uvicorn_config
from stream_server.settings import Settings

GRACE_SECONDS = 0.6


class BusyHub:
    """A hub whose streams take a part of the grace period to end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def drain(self, grace: float) -> None:
        await asyncio.sleep(min(self._seconds, grace))


@pytest.mark.parametrize("drain_seconds", [0.0, 0.3, 5.0])
async def test_streams_and_other_requests_share_the_grace_period(drain_seconds: float) -> None:
    settings = Settings.load(database_url="postgresql://db/airflow", grace_period=GRACE_SECONDS)
    app: Any = SimpleNamespace(state=SimpleNamespace(hub=BusyHub(drain_seconds)))
    server = DrainingServer(build_uvicorn_config(app, settings), settings)
    server.servers = []

    async def end_lifespan() -> None:
        pass

    async def serve_forever() -> None:
        await asyncio.Event().wait()

    server.lifespan = SimpleNamespace(shutdown=end_lifespan)
    request = asyncio.create_task(serve_forever())
    server.server_state.tasks.add(request)
    started = time.monotonic()
    await server.shutdown()
    # uvicorn itself waits for 0.1 s.
    assert time.monotonic() - started < GRACE_SECONDS + 0.4
    with pytest.raises(asyncio.CancelledError):
        await request

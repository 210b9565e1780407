"""Requests that wait for the same read get an error each: none sees what another one adds to it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalUnreachable
from stream_server.journal.run_store import RunStore
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import WAIT, run_path
from support.server import RunningServer
from support.waiting import eventually_async


async def test_requests_that_share_a_failed_load_get_errors_of_their_own(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for the stream of its new run, another watches it, and a third attaches to it."""
    loads: list[asyncio.Future[Any]] = []

    async def read_run(_store: RunStore, _key: RunKey) -> Any:
        loads.append(asyncio.get_running_loop().create_future())
        return await loads[-1]

    monkeypatch.setattr(RunStore, "read_run", read_run)
    json_body = {"dag_run_id": "shared"}
    calls = [
        asyncio.create_task(caller.post(WAIT, json=json_body)),
        asyncio.create_task(caller.get(f"{run_path('shared')}/stream")),
        asyncio.create_task(caller.get(f"{run_path('shared')}/result")),
    ]
    watched = RunKey("chat", "shared")
    await eventually_async(lambda: bool(loads) and trigger_server.watcher_count(watched) == 3)
    loads[0].set_exception(JournalUnreachable("PostgreSQL is away"))
    triggered, *others = await asyncio.gather(*calls)
    assert (triggered.status_code, triggered.headers["location"]) == (503, run_path("shared"))
    assert triggered.json()["detail"].count("was triggered") == 1
    for other in others:
        assert (other.status_code, other.json()["detail"]) == (503, "PostgreSQL is away")
        assert "location" not in other.headers

"""Fixtures for asking in one call: a stub of Airflow, a server in front of it, and a client with credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.server import RunningServer, running_server
from support.waiting import eventually_async

RUNS = "/api/v2/dags/chat/dagRuns"
WAIT = f"{RUNS}?wait_for_completion=true"
TOKEN = "Bearer the-secret-of-ada"
COOKIES = "_token=the-secret-cookie; _access_token=another-secret"

ANSWER = {"text": "because"}
"""What `CHAIN` answers (`AirflowSql.answer`)."""


@pytest.fixture
async def stub(journal: str, airflow: AirflowSql) -> AsyncIterator[AirflowStub]:
    """An Airflow with the DAG `chat`."""
    async with AirflowStub.serving(journal, airflow) as stub:
        yield stub


@pytest.fixture
async def asked(settings: Callable[..., Settings], stub: AirflowStub) -> AsyncIterator[RunningServer]:
    """A server that may ask that Airflow."""
    async with running_server(settings(airflow_url=stub.url, auth="none", max_body_bytes=10_000)) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has begun")
        yield server


@pytest.fixture
async def caller(asked: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who says who he is."""
    async with caller_of(asked) as client:
        yield client


def caller_of(server: RunningServer) -> httpx.AsyncClient:
    headers = {"Authorization": TOKEN, "Cookie": COOKIES}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15)


def run_path(run_id: str) -> str:
    return f"{RUNS}/{run_id}"


async def answer_at_once(airflow: AirflowSql, key: RunKey) -> None:
    """Run `CHAIN` to its end; for `AirflowStub.then`."""
    await airflow.answer(key)
    await airflow.set_task(key, "clean_up", "success")
    await airflow.set_run(key, "success")


async def grace_is_over() -> None:
    """Wait until a cancellation was decided, one way or the other."""
    await eventually_async(lambda: not cancellations(), what="the grace is over")


async def grace_has_begun() -> None:
    await eventually_async(cancellations, what="the client's leaving is noticed")


def cancellations() -> list[asyncio.Task[object]]:
    """Return what servers in this process are about to cancel."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "cancellation"]

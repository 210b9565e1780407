"""Fixtures for triggering in one call: a stub of Airflow, a server in front of it, and a client with credentials."""

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
"""The result of `CHAIN` (`AirflowSql.answer`)."""


@pytest.fixture
async def stub(journal: str, airflow: AirflowSql) -> AsyncIterator[AirflowStub]:
    """An Airflow with the DAG `chat`."""
    async with AirflowStub.serve(journal, airflow) as stub:
        yield stub


@pytest.fixture
async def trigger_server(settings: Callable[..., Settings], stub: AirflowStub) -> AsyncIterator[RunningServer]:
    """A server with that Airflow."""
    async with running_server(settings(airflow_url=stub.url, auth="none", max_body_bytes=10_000)) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


@pytest.fixture
async def caller(trigger_server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client with credentials."""
    async with client_with_token(trigger_server) as client:
        yield client


def client_with_token(server: RunningServer) -> httpx.AsyncClient:
    headers = {"Authorization": TOKEN, "Cookie": COOKIES}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15)


def run_path(run_id: str) -> str:
    return f"{RUNS}/{run_id}"


async def complete_run(airflow: AirflowSql, key: RunKey) -> None:
    """Run `CHAIN` to its end; for `AirflowStub.then`."""
    await airflow.complete_chain(key)
    await airflow.set_task(key, "clean_up", "success")
    await airflow.set_run(key, "success")


async def wait_for_cancellation_decision() -> None:
    """Wait until each pending cancellation was carried out or dropped."""
    await eventually_async(lambda: not pending_cancellations(), what="the grace period ends")


async def wait_for_pending_cancellation() -> None:
    await eventually_async(pending_cancellations, what="the server detects the disconnect")


def pending_cancellations() -> list[asyncio.Task[object]]:
    """Return the tasks of servers in this process that are about to cancel a run."""
    return [task for task in asyncio.all_tasks() if task.get_name() == "cancellation"]

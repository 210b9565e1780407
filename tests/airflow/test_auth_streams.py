"""A stream shows no more than Airflow lets its caller see, for as long as it lives."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.airflow_callers import Denied, bearer, token
from support.open_streams import FORBIDDEN, OUT, Streams, hearing, within
from support.permission_comparison import SECONDS
from support.waiting import eventually_async

DAG = "chat_answer"


@pytest.fixture(scope="module")
def waiting(airflow: AirflowRestClient) -> RunKey:
    """A run that never begins."""
    body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "dag_run_id": "waiting"}
    assert airflow.request("POST", f"/dags/{DAG}/dagRuns", json=body).is_success
    return RunKey(DAG, "waiting")


async def test_who_logs_out_is_out_everywhere(stack: DemoStack, guarded: StreamServerProcess, waiting: RunKey) -> None:
    headers = bearer(token("leaver", "admin"))
    async with Streams(guarded.url, headers, waiting).opened() as tasks, httpx.AsyncClient() as client:
        assert (await client.get(f"{stack.airflow_url}/api/v2/auth/logout", headers=headers)).status_code == 307
        assert await within(tasks, SECONDS) == OUT


async def test_who_has_a_token_no_more_is_out_everywhere(guarded: StreamServerProcess, waiting: RunKey) -> None:
    # Airflow allows for 10 s of difference between clocks.
    async with Streams(guarded.url, bearer(token("briefly", "admin", lifetime=5)), waiting).opened() as tasks:
        assert await within(tasks, SECONDS) == OUT


async def test_who_loses_a_permission_loses_what_it_was_for(
    guarded: StreamServerProcess, waiting: RunKey, denied: Denied
) -> None:
    async with Streams(guarded.url, bearer(token("loser", "admin")), waiting).opened() as tasks:
        denied.set(loser=["XCOM"])
        of_run = [0, 1, 2, 3, 4, 5]
        assert await within([tasks[number] for number in of_run], SECONDS) == [4007, 4007, 4007, 4007, 503, 0]
        assert not any(task.done() for task in tasks[6:])
    denied.set()
    async with Streams(guarded.url, bearer(token("loser", "admin")), waiting).opened() as tasks:
        denied.set(loser=["RUN"])
        assert await within(tasks, SECONDS) == FORBIDDEN


async def test_streams_of_many_runs_tell_what_the_caller_may_read(
    stack: DemoStack, guarded: StreamServerProcess, airflow: AirflowRestClient, denied: Denied
) -> None:
    denied.set(half=["chat_answer"])
    async with hearing(guarded.url, {name: bearer(token(name, "viewer")) for name in ("half", "whole")}) as heard:
        first = RunKey(
            "chat_answer", await asyncio.to_thread(airflow.trigger_run, "chat_answer", {"teardown_seconds": 0})
        )
        second = RunKey("mapped_squares", await asyncio.to_thread(airflow.trigger_run, "mapped_squares"))
        for key in (first, second):
            await asyncio.to_thread(airflow.wait_until_finished, *key)
        await eventually_async(
            lambda: "mapped_squares" in heard["half"] and heard["whole"] >= {"chat_answer", "mapped_squares"},
            SECONDS,
            "both hear what they may read",
        )
    assert heard["half"] == {"mapped_squares"}

"""A stream contains only what Airflow lets its caller see, until it ends."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.airflow_callers import DeniedPermissions, bearer_header, make_token
from support.open_streams import FORBIDDEN, OUT, OpenStreams, ends_within, follow_all_runs
from support.permission_comparison import SECONDS
from support.waiting import eventually_async

DAG = "chat_answer"


@pytest.fixture(scope="module")
def queued_run(airflow: AirflowRestClient) -> RunKey:
    """A run that never starts."""
    body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "dag_run_id": "waiting"}
    assert airflow.request("POST", f"/dags/{DAG}/dagRuns", json=body).is_success
    return RunKey(DAG, "waiting")


async def test_a_logout_ends_all_streams(
    stack: DemoStack, auth_server: StreamServerProcess, queued_run: RunKey
) -> None:
    headers = bearer_header(make_token("logged_out", "admin"))
    async with OpenStreams(auth_server.url, headers, queued_run).open_all() as tasks, httpx.AsyncClient() as client:
        assert (await client.get(f"{stack.airflow_url}/api/v2/auth/logout", headers=headers)).status_code == 307
        assert await ends_within(tasks, SECONDS) == OUT


async def test_an_expired_token_ends_all_streams(auth_server: StreamServerProcess, queued_run: RunKey) -> None:
    # Airflow allows a clock difference of 10 s.
    async with OpenStreams(
        auth_server.url, bearer_header(make_token("briefly", "admin", lifetime=5)), queued_run
    ).open_all() as tasks:
        assert await ends_within(tasks, SECONDS) == OUT


async def test_a_lost_permission_ends_the_streams_that_need_it(
    auth_server: StreamServerProcess, queued_run: RunKey, denied: DeniedPermissions
) -> None:
    async with OpenStreams(
        auth_server.url, bearer_header(make_token("revoked", "admin")), queued_run
    ).open_all() as tasks:
        denied.deny_only(revoked=["XCOM"])
        of_run = [0, 1, 2, 3, 4, 5]
        assert await ends_within([tasks[number] for number in of_run], SECONDS) == [4007, 4007, 4007, 4007, 503, 0]
        assert not any(task.done() for task in tasks[6:])
    denied.deny_only()
    async with OpenStreams(
        auth_server.url, bearer_header(make_token("revoked", "admin")), queued_run
    ).open_all() as tasks:
        denied.deny_only(revoked=["RUN"])
        assert await ends_within(tasks, SECONDS) == FORBIDDEN


async def test_streams_of_many_runs_contain_what_the_caller_can_read(
    stack: DemoStack, auth_server: StreamServerProcess, airflow: AirflowRestClient, denied: DeniedPermissions
) -> None:
    denied.deny_only(half=["chat_answer"])
    async with follow_all_runs(
        auth_server.url, {name: bearer_header(make_token(name, "viewer")) for name in ("half", "whole")}
    ) as dag_ids:
        first = RunKey(
            "chat_answer", await asyncio.to_thread(airflow.trigger_run, "chat_answer", {"teardown_seconds": 0})
        )
        second = RunKey("mapped_squares", await asyncio.to_thread(airflow.trigger_run, "mapped_squares"))
        for key in (first, second):
            await asyncio.to_thread(airflow.wait_until_finished, *key)
        await eventually_async(
            lambda: "mapped_squares" in dag_ids["half"] and dag_ids["whole"] >= {"chat_answer", "mapped_squares"},
            SECONDS,
            "both receive what they can read",
        )
    assert dag_ids["half"] == {"mapped_squares"}

"""Airflow's own `…/wait`, at Airflow and at the server: the same responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import httpx
import pytest
from airflow_client.client import ApiClient, Configuration, DagRunApi
from airflow_client.client.exceptions import NotFoundException

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey

RUN_SECONDS = 60.0


@pytest.fixture(scope="module")
def runs(airflow: AirflowRestClient) -> dict[str, RunKey]:
    """Finished runs: a result, a mapped result, a native result, and a failure."""
    short_confs = {"chat_answer": {"teardown_seconds": 0}, "fail_before_teardown": {"teardown_seconds": 0}}
    confs: dict[str, dict[str, Any]] = {**short_confs, "native_result": {"archive_seconds": 0}, "mapped_squares": {}}
    keys = {dag_id: RunKey(dag_id, airflow.trigger_run(dag_id, conf)) for dag_id, conf in confs.items()}
    for key in keys.values():
        airflow.wait_until_finished(*key)
    return keys


@pytest.fixture
async def both(stack: DemoStack, token: str) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    """Clients of Airflow and of the server."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(base_url=stack.airflow_url, headers=headers, timeout=RUN_SECONDS) as native,
        httpx.AsyncClient(base_url=stack.server_url, headers=headers, timeout=RUN_SECONDS) as ours,
    ):
        yield native, ours


def path(key: RunKey, query: str) -> str:
    return f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/wait{query}"


def lines(body: str) -> list[Any]:
    """Return the lines without repeated states: Airflow repeats a state at each interval, the server less often."""
    return [line for line, _ in groupby(json.loads(line) for line in body.splitlines())]


@pytest.mark.parametrize(
    ("dag_id", "query"),
    [
        ("chat_answer", ""),
        ("chat_answer", "&result=answer"),
        ("chat_answer", "&result=answer&result=think&result=retrieve"),
        ("chat_answer", "&result="),
        ("chat_answer", "&result=&result=think"),
        ("chat_answer", "&result=missing"),
        ("chat_answer", "&result=close_session"),
        ("chat_answer", "&something=else"),
        ("native_result", ""),
        ("native_result", "&result=archive"),
        ("mapped_squares", ""),
        ("mapped_squares", "&result=square&result=numbers"),
        ("fail_before_teardown", ""),
        ("fail_before_teardown", "&result=retrieve&result=answer"),
    ],
)
async def test_wait_responses_for_finished_runs_are_equal(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], runs: dict[str, RunKey], dag_id: str, query: str
) -> None:
    native, ours = [await one.get(path(runs[dag_id], f"?interval=0.1{query}")) for one in both]
    assert ours.status_code == native.status_code == 200
    assert ours.headers.get("content-type") == native.headers.get("content-type")
    assert ours.content == native.content


@pytest.mark.parametrize("query", ["", "?interval=", "?interval=0", "?interval=-1", "?interval=x", "?interval=nan"])
@pytest.mark.parametrize("run_id", [None, "no such run"])
async def test_wait_errors_are_equal(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], runs: dict[str, RunKey], query: str, run_id: str | None
) -> None:
    key = RunKey("chat_answer", run_id or runs["chat_answer"].run_id)
    native, ours = [await one.get(path(key, query)) for one in both]
    assert (ours.status_code, ours.json()) == (native.status_code, native.json())
    assert ours.status_code == 422
    assert ours.headers["content-type"] == native.headers["content-type"]


@pytest.mark.parametrize("key", [RunKey("chat_answer", "no such run"), RunKey("no_such_dag", "r")])
async def test_wait_responses_for_unknown_runs_are_equal(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], key: RunKey
) -> None:
    native, ours = [await one.get(path(key, "?interval=1")) for one in both]
    assert (ours.status_code, ours.json()) == (native.status_code, native.json())
    assert ours.status_code == 404
    assert ours.headers["content-type"] == native.headers["content-type"]


@pytest.mark.parametrize("dag_id", ["native_result", "fail_before_teardown"])
async def test_wait_responses_are_equal_from_the_first_state_on(
    both: tuple[httpx.AsyncClient, httpx.AsyncClient], airflow: AirflowRestClient, dag_id: str
) -> None:
    """The run starts after both have reported it as queued."""
    conf = {"archive_seconds": 1} if dag_id == "native_result" else {"teardown_seconds": 1}
    await asyncio.to_thread(airflow.set_paused, dag_id)
    try:
        key = RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id, conf))
        started = [asyncio.Event(), asyncio.Event()]
        requests = [
            asyncio.create_task(_read(one, path(key, "?interval=0.05&result=answer"), event))
            for one, event in zip(both, started, strict=True)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in started)), RUN_SECONDS)
    finally:
        await asyncio.to_thread(airflow.set_paused, dag_id, paused=False)
    native, ours = await asyncio.wait_for(asyncio.gather(*requests), RUN_SECONDS)
    assert lines(ours) == lines(native)
    assert [line["state"] for line in lines(ours)][:2] == ["queued", "running"]
    assert len(ours.splitlines()) < len(native.splitlines()), "lines are written at changes, not at the interval"


async def _read(client: httpx.AsyncClient, target: str, started: asyncio.Event) -> str:
    text = ""
    async with client.stream("GET", target) as response:
        async for part in response.aiter_text():
            text += part
            started.set()
    return text


async def test_airflows_own_client_works_with_the_servers_address(
    stack: DemoStack, airflow: AirflowRestClient, token: str, runs: dict[str, RunKey]
) -> None:
    key = RunKey("native_result", await asyncio.to_thread(airflow.trigger_run, "native_result", {"archive_seconds": 0}))

    def wait_with_client(host: str, key: RunKey) -> Any:
        with ApiClient(Configuration(host=host, access_token=token)) as client:
            return DagRunApi(client).wait_dag_run_until_finished(*key, interval=0.5)

    both = (stack.airflow_url, stack.server_url)
    # The client returns text of several lines for an active run, and an object for a finished one.
    native, ours = await asyncio.gather(*(asyncio.to_thread(wait_with_client, host, key) for host in both))
    assert lines(ours)[-1] == lines(native)[-1]
    native, ours = [await asyncio.to_thread(wait_with_client, host, runs["native_result"]) for host in both]
    assert ours == native == {"state": "success", "results": {"answer": ours["results"]["answer"]}}
    for host in both:
        with pytest.raises(NotFoundException) as refused:
            await asyncio.to_thread(wait_with_client, host, RunKey("native_result", "nothing"))
        assert "was not found" in str(refused.value.body)

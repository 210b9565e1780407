"""A repeated request with an `Idempotency-Key` triggers one run, on any server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import CONFLICT, AirflowStub, ReceivedRequest, TruncatedResponse
from support.airflow_stub_fixtures import ANSWER, WAIT, client_with_token, complete_run
from support.server import RunningServer, running_server
from support.streams import types
from support.waiting import eventually_async

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
NOW = f"{WAIT}&timeout=0"


async def read_run_ids(airflow: AirflowSql) -> list[str]:
    rows = await airflow.connection.fetch("SELECT run_id FROM dag_run ORDER BY run_id")
    return [row["run_id"] for row in rows]


async def count_claims(airflow: AirflowSql) -> int:
    count: int = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.claims")
    return count


async def test_the_same_key_twice_is_the_same_run(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    first = await caller.post(NOW, json={"conf": {"a": 1, "b": 2}}, headers=KEY)
    # The order of members and the query parameters do not make it another request.
    second = await caller.post(f"{NOW}&confirm=success", json={"conf": {"b": 2, "a": 1}}, headers=KEY)
    assert (first.status_code, second.status_code) == (202, 202), second.text
    assert first.json()["dag_run_id"] == second.json()["dag_run_id"]
    assert await read_run_ids(airflow) == [first.json()["dag_run_id"]]
    other = await caller.post(NOW, json={}, headers={"Idempotency-Key": "another"})
    assert other.json()["dag_run_id"] != first.json()["dag_run_id"]


async def test_a_second_request_gets_the_result_too(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    stub.then = complete_run
    accept = {"Accept": "application/x-ndjson"}
    first = await caller.post(WAIT, json={}, headers={**KEY, **accept})
    second = await caller.post(WAIT, json={}, headers={**KEY, **accept})
    assert first.headers["content-location"] == second.headers["content-location"]
    assert types([json.loads(line) for line in second.text.splitlines()]) == ["snapshot", "result", "end"]
    assert (await caller.post(WAIT, json={}, headers=KEY)).json()["results"] == {"answer": ANSWER}


@pytest.mark.parametrize("body", [{}, {"dag_run_id": "order-42"}])
async def test_two_concurrent_requests_on_two_servers_are_one_run(
    trigger_server: RunningServer,
    settings: Callable[..., Settings],
    stub: AirflowStub,
    airflow: AirflowSql,
    body: dict[str, Any],
) -> None:
    both_have_arrived = asyncio.Event()

    async def wait_for_the_other(_received: ReceivedRequest) -> None:
        if len(stub.triggers) == 2:
            both_have_arrived.set()
        await both_have_arrived.wait()

    stub.instead = wait_for_the_other
    async with running_server(settings(auth="none", airflow_url=stub.url)) as other:
        await eventually_async(lambda: other.hub.is_live)
        async with client_with_token(trigger_server) as one, client_with_token(other) as two:
            answers = await asyncio.gather(*(client.post(NOW, json=body, headers=KEY) for client in (one, two)))
    assert [answer.status_code for answer in answers] == [202, 202], [answer.text for answer in answers]
    assert len({answer.json()["dag_run_id"] for answer in answers}) == 1
    assert len(await read_run_ids(airflow)) == 1


async def test_a_repeated_request_finds_the_run_of_a_lost_response(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    async def lose(_session: AirflowSql, _key: RunKey) -> Response:
        return TruncatedResponse()

    stub.then = lose
    lost = await caller.post(NOW, json={}, headers=KEY)
    assert lost.status_code == 502
    stub.then = None
    found = await caller.post(NOW, json={}, headers=KEY)
    assert found.status_code == 202
    assert await read_run_ids(airflow) == [found.json()["dag_run_id"]]


async def test_a_key_used_for_another_request_returns_422(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    assert (await caller.post(NOW, json={"conf": {"a": 1}}, headers=KEY)).status_code == 202
    other = await caller.post(NOW, json={"conf": {"a": 2}}, headers=KEY)
    assert (other.status_code, other.json()["title"]) == (422, "Idempotency key reused")
    assert len(await read_run_ids(airflow)) == len(stub.triggers) == 1
    # A key is scoped to its DAG.
    await airflow.add_dag("chat2", {"answer": []})
    elsewhere = await caller.post(NOW.replace("/chat/", "/chat2/"), json={"conf": {"a": 2}}, headers=KEY)
    assert elsewhere.status_code == 202


async def test_a_key_expires(settings: Callable[..., Settings], stub: AirflowStub, airflow: AirflowSql) -> None:
    async with running_server(settings(auth="none", airflow_url=stub.url, idempotency_ttl="1ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_with_token(server) as caller:
            for number in range(3):
                answer = await caller.post(NOW, json={"conf": {"number": number}}, headers=KEY)
                assert answer.status_code == 202, answer.text
            for number in range(15):
                await caller.post(NOW, json={}, headers={"Idempotency-Key": str(number)})
    assert len(await read_run_ids(airflow)) == 18
    assert await count_claims(airflow) < 5, "expired keys are deleted"


@pytest.mark.parametrize("status", [400, 403, 409])
async def test_a_refusal_by_airflow_releases_the_key(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, status: int
) -> None:
    """The conflict is about the logical date, not about the run of the key."""

    async def refuse(_received: ReceivedRequest) -> Response:
        return JSONResponse({"detail": CONFLICT}, status)

    stub.instead = refuse
    assert (await caller.post(NOW, json={"conf": {"wrong": 1}}, headers=KEY)).status_code == status
    assert await count_claims(airflow) == 0
    stub.instead = None
    assert (await caller.post(NOW, json={"conf": {"right": 1}}, headers=KEY)).status_code == 202


async def test_a_key_does_not_attach_to_an_older_run(caller: httpx.AsyncClient, airflow: AirflowSql) -> None:
    body = {"dag_run_id": "order-42"}
    assert (await caller.post(NOW, json=body)).status_code == 202
    conflict = await caller.post(NOW, json=body, headers=KEY)
    assert (conflict.status_code, conflict.json()["title"]) == (409, "Refused by Airflow")
    assert await count_claims(airflow) == 0
    attached = await caller.post(f"{NOW}&if_exists=attach", json=body, headers=KEY)
    assert (attached.status_code, attached.json()["dag_run_id"]) == (202, "order-42")


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_the_length_of_a_key_is_limited(caller: httpx.AsyncClient, stub: AirflowStub, key: str) -> None:
    answer = await caller.post(NOW, json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, "1 to 255 characters" in answer.json()["detail"]) == (422, True)
    assert stub.received == []


async def test_an_existing_run_is_a_conflict_unless_attached_to(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    stub.then = complete_run
    body = {"dag_run_id": "order-42"}
    assert (await caller.post(WAIT, json=body)).json()["results"] == {"answer": ANSWER}
    conflict = await caller.post(WAIT, json=body)
    assert conflict.status_code == 409
    assert CONFLICT["message"] in conflict.json()["detail"]
    attached = await caller.post(f"{WAIT}&if_exists=attach", json=body)
    assert (attached.status_code, attached.json()["results"]) == (200, {"answer": ANSWER})
    assert await read_run_ids(airflow) == ["order-42"]


async def test_attaching_does_not_hide_another_conflict(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    async def refuse(_received: ReceivedRequest) -> Response:
        return JSONResponse({"detail": CONFLICT}, 409)

    stub.instead = refuse
    for body in (
        {"dag_run_id": "new", "logical_date": "2026-11-22T00:00:00Z"},
        {"logical_date": "2026-11-22T00:00:00Z"},
    ):
        answer = await caller.post(f"{WAIT}&if_exists=attach", json=body)
        assert answer.status_code == 409


async def test_a_trigger_that_attaches_is_one_join(caller: httpx.AsyncClient, airflow: AirflowSql) -> None:
    """The server itself looks whether the run exists, which is no join."""
    body = {"dag_run_id": "order-42"}
    assert (await caller.post(NOW, json=body)).status_code == 202
    before = await count_joins(caller)
    assert (await caller.post(f"{NOW}&if_exists=attach", json=body, headers=KEY)).status_code == 202
    assert await count_joins(caller) == before + 1


async def count_joins(caller: httpx.AsyncClient) -> float:
    name = re.compile(r"^stream_server_join_duration_seconds_count\{.*\} (\S+)$", re.MULTILINE)
    return sum(map(float, name.findall((await caller.get("/metrics")).text)))

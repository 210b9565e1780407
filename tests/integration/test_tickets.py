"""Tickets: each opens one stream, on any replica; the table contains no secrets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints.tickets import MAX_PATHS, TICKETS_PATH
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import COOKIES, TOKEN
from support.server import RunningServer, running_server
from support.streams import sse, stream_path, websocket
from support.waiting import eventually_async

Make = Callable[..., Settings]


async def get_ticket(server: RunningServer, *paths: str, **headers: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url, headers=headers or {"Authorization": TOKEN}) as client:
        answer = await client.post(TICKETS_PATH, json={"paths": paths})
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def get_refusal(server: RunningServer, path: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), answer.text
    problem: dict[str, Any] = answer.json()
    assert "POST /api/v2/stream/tickets" in problem["detail"]
    return problem


async def count_tickets(airflow: AirflowSql) -> int:
    count: int = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.tickets")
    return count


@pytest.fixture
async def other(settings: Make) -> AsyncIterator[RunningServer]:
    """Another replica."""
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        yield server


async def test_a_ticket_opens_one_stream_on_any_replica(
    server: RunningServer, other: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    path = stream_path(run)
    ticket = await get_ticket(server, path)
    assert ticket["paths"] == [path]
    async with sse(other.url, run, f"?until=run&ticket={ticket['ticket']}") as events:
        assert (await events.next())["type"] == "snapshot"
    assert await count_tickets(airflow) == 0
    for replica in (server, other):
        problem = await get_refusal(replica, f"{path}?ticket={ticket['ticket']}")
        assert (problem["title"], "used already" in problem["detail"]) == ("Ticket refused", True)


async def test_websockets_and_ndjson_accept_tickets(server: RunningServer, run: RunKey) -> None:
    ticket = await get_ticket(server, stream_path(run))
    async with websocket(server.url, run, f"?ticket={ticket['ticket']}") as connection:
        assert json.loads(await connection.recv())["type"] == "snapshot"
    with pytest.raises(InvalidStatus, match="401"):
        async with websocket(server.url, run, f"?ticket={ticket['ticket']}"):
            pass
    ticket = await get_ticket(server, stream_path(run))
    lines = {"Accept": "application/x-ndjson"}
    async with (
        httpx.AsyncClient(base_url=server.url, headers=lines) as client,
        client.stream("GET", stream_path(run, f"?ticket={ticket['ticket']}")) as answer,
    ):
        assert json.loads(await anext(answer.aiter_lines()))["type"] == "snapshot"
    ticket = await get_ticket(server, "/api/v2/stream")
    address = f"{server.url.replace('http', 'ws', 1)}/api/v2/stream?ticket={ticket['ticket']}"
    async with connect(address, proxy=None) as connection:
        await connection.send('{"op":"ping","id":"p"}')
        assert json.loads(await connection.recv())["type"] == "ack"


async def test_a_ticket_opens_only_one_of_concurrent_streams(
    server: RunningServer, other: RunningServer, run: RunKey
) -> None:
    ticket = (await get_ticket(server, stream_path(run)))["ticket"]

    async def open_stream(replica: RunningServer) -> int:
        async with sse(replica.url, run, f"?ticket={ticket}") as events:
            return events.response.status_code

    statuses = await asyncio.gather(*(open_stream(replica) for replica in (server, other) for _ in range(10)))
    assert sorted(statuses) == [200, *[401] * 19]


async def test_a_ticket_for_another_path_is_refused_and_used_up(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    ticket = (await get_ticket(server, "/api/v2/stream", "/api/v2/dags/other/stream"))["ticket"]
    problem = await get_refusal(server, f"{stream_path(run)}?ticket={ticket}")
    assert "another path" in problem["detail"]
    assert await count_tickets(airflow) == 0


async def test_a_ticket_is_valid_for_streams_only(server: RunningServer, run: RunKey) -> None:
    ticket = (await get_ticket(server, stream_path(run)))["ticket"]
    await get_refusal(server, f"{stream_path(run).removesuffix('stream')}result?ticket={ticket}")


async def test_an_expired_ticket_is_refused_and_deleted(settings: Make, airflow: AirflowSql, run: RunKey) -> None:
    async with running_server(settings(ticket_ttl="1ms")) as server:
        ticket = (await get_ticket(server, stream_path(run)))["ticket"]
        problem = await get_refusal(server, f"{stream_path(run)}?ticket={ticket}")
        assert "has expired" in problem["detail"]
        for _ in range(3):
            await get_ticket(server, stream_path(run))
        assert await count_tickets(airflow) <= 2


@pytest.mark.parametrize("ticket", ["", "x", "x" * 43, "x" * 5000, "%00", "%F0%9F%8E%AB", "a&ticket=b"])
async def test_an_unknown_ticket_is_refused(server: RunningServer, run: RunKey, ticket: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(f"{stream_path(run)}?ticket={ticket}")
    assert answer.status_code == {"a&ticket=b": 422, "%00": 400}.get(ticket, 401)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "must be a JSON object"),
        (b"{}", "must be a JSON object"),
        (b'{"paths": "/api/v2/stream"}', "must be a JSON object"),
        (b'{"paths": ["/api/v2/stream"], "ttl": 9}', "must be a JSON object"),
        (b"[" * 100_000, "must be a JSON object"),
        (b'{"paths": []}', f"1 to {MAX_PATHS}"),
        (json.dumps({"paths": ["/api/v2/stream"] * (MAX_PATHS + 1)}).encode(), f"1 to {MAX_PATHS}"),
        (b'{"paths": ["/api/v2/stream?until=run"]}', "without a query"),
        (b'{"paths": ["/api/v2/dags/d/dagRuns"]}', "must have paths such as"),
        (b'{"paths": ["https://elsewhere/api/v2/stream"]}', "must have paths such as"),
    ],
)
async def test_an_invalid_request_is_rejected_with_the_allowed_form(
    server: RunningServer, body: bytes, detail: str
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.post(TICKETS_PATH, content=body)
    assert (answer.status_code, detail in answer.json()["detail"]) == (422, True), answer.text


async def test_a_stream_of_a_ticket_ends_with_the_rights_of_its_caller(
    settings: Make, airflow: AirflowSql, stub: AirflowStub
) -> None:
    key, allowed = RunKey("chat", "r1"), {TOKEN}
    await airflow.trigger(key, stub.version, list(CHAIN))

    async def check(received: ReceivedRequest) -> Response | None:
        known = received.headers.get("authorization") in allowed
        return None if known else JSONResponse({"detail": "Forbidden"}, 403)

    stub.instead = check
    guarded = settings(airflow_url=stub.url, auth_cache="200ms")
    async with running_server(guarded) as server, running_server(guarded) as replica:
        await eventually_async(lambda: replica.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": "Bearer eve"}) as client:
            refused = await client.post(TICKETS_PATH, json={"paths": [stream_path(key)]})
            everything = await client.post(TICKETS_PATH, json={"paths": ["/api/v2/stream"]})
        assert (refused.status_code, everything.status_code) == (403, 403)
        ticket = await get_ticket(server, stream_path(key))
        async with sse(replica.url, key, f"?until=run&ticket={ticket['ticket']}") as events:
            assert (await events.next())["type"] == "snapshot"
            allowed.clear()
            *_, close = await events.rest()
    assert (close["type"], close["code"], close["reconnect"]) == ("close", 4503, False)


async def test_unused_tickets_of_a_caller_are_limited(settings: Make, run: RunKey) -> None:
    async with running_server(settings(max_tickets_per_caller=2)) as server:
        for _ in range(2):
            await get_ticket(server, stream_path(run))
        async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": TOKEN}) as client:
            answer = await client.post(TICKETS_PATH, json={"paths": [stream_path(run)]})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        assert answer.json()["title"] == "Too many tickets"
        await get_ticket(server, stream_path(run), Cookie=COOKIES)


async def test_the_table_contains_no_secrets(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    tickets = [
        (await get_ticket(server, stream_path(run), **headers))["ticket"]
        for headers in ({"Authorization": TOKEN}, {"Cookie": COOKIES})
    ]
    rows = await airflow.connection.fetch("SELECT * FROM stream_server.tickets")
    shown = repr([tuple(row) for row in rows]) + "".join(bytes(row["credential"]).decode("latin-1") for row in rows)
    assert len(rows) == 2
    assert not [secret for secret in (*tickets, TOKEN, "the-secret", COOKIES, "_token") if secret in shown]


async def test_a_journal_without_the_tickets_table_returns_503(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    await airflow.connection.execute("DROP FUNCTION stream_server.keep_ticket; DROP TABLE stream_server.tickets")
    async with httpx.AsyncClient(base_url=server.url) as client:
        ticket = await client.post(TICKETS_PATH, json={"paths": [stream_path(run)]})
        refused = await client.get(f"{stream_path(run)}?ticket=x")
    assert [(answer.status_code, answer.json()["title"]) for answer in (ticket, refused)] == [
        (503, "Journal missing")
    ] * 2
    assert "stream-server install" in ticket.json()["detail"]


async def test_other_database_roles_cannot_use_tickets(airflow: AirflowSql) -> None:
    granted = await airflow.connection.fetchrow(
        "SELECT has_function_privilege('public', 'stream_server.redeem_ticket(bytea)', 'EXECUTE'),"
        " has_table_privilege('public', 'stream_server.tickets', 'SELECT')"
    )
    assert granted is not None
    assert tuple(granted) == (False, False)

"""Airflow decides what a caller can see before a stream starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.raw_connection import UPGRADE, open_raw, request
from support.server import RunningServer, running_server
from support.streams import sse, stream_path
from support.stub_callers import CallerPermissions, StubPermissions, client_for, refusal, unsigned_jwt
from support.waiting import eventually_async

PATHS = {
    "stream": "/stream",
    "result": "/result?timeout=0",
    "wait": "/wait?interval=1",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("status", "detail"), [(401, "Not authenticated"), (401, "Token Expired"), (403, "Forbidden")])
async def test_a_refusal_by_airflow_is_passed_on_for_known_and_unknown_runs(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions, path: str, status: int, detail: str, *, there: bool
) -> None:
    ada.runs = ada.xcoms = refusal(status, detail)
    run = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id if there else 'nowhere'}"
    async with client_for(auth_server, ada) as client:
        answer = await client.get(f"{run}{path}")
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    form = "application/json" if path.startswith("/wait") else "application/problem+json"
    assert answer.headers["content-type"] == form


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_an_unknown_run_is_404_for_a_caller_that_can_read_runs(
    auth_server: RunningServer, ada: CallerPermissions, path: str
) -> None:
    async with client_for(auth_server, ada) as client:
        answers = [await client.get(f"/api/v2/dags/chat/dagRuns/nowhere{path}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]


async def test_a_run_id_that_is_another_path_is_404(auth_server: RunningServer, ada: CallerPermissions) -> None:
    async with client_for(auth_server, ada) as client:
        answer = await client.get("/api/v2/dags/chat/dagRuns/%2E%2E/result")
    assert answer.status_code == 404


async def test_a_request_without_credentials_is_401(auth_server: RunningServer, key: RunKey) -> None:
    async with client_for(auth_server) as client:
        for path in (f"/api/v2/dags/chat/dagRuns/{key.run_id}/stream", "/api/v2/stream", "/api/v2/dags/chat/stream"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["detail"]) == (401, "Not authenticated")


async def test_cookies_authenticate_like_a_token(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions
) -> None:
    headers = {"Cookie": f"theme=dark; _token={ada.token}; _access_token=more"}
    async with sse(auth_server.url, key, headers=headers) as events:
        assert (await events.next())["type"] == "snapshot"


async def test_a_header_that_cannot_be_forwarded_is_refused_without_quoting_it(
    auth_server: RunningServer, key: RunKey
) -> None:
    async with client_for(auth_server) as client:
        answer = await client.get(stream_path(key), headers=[(b"Authorization", b"Bearer s\xe9cret")])
    assert answer.status_code == 401
    assert "cret" not in answer.text


@pytest.mark.parametrize("header", ["Authorization: Bearer s\x01cret", "Cookie: _token=s\x7fcret\x02"])
@pytest.mark.parametrize("upgrade", [(), UPGRADE])
async def test_a_malformed_header_is_a_client_error(
    auth_server: RunningServer, key: RunKey, header: str, upgrade: tuple[str, ...]
) -> None:
    async with open_raw(auth_server.url) as client:
        await client.send(request(stream_path(key), header, *upgrade))
        answer = await client.read_response()
    assert answer.status == 400
    assert "cret" not in json.dumps(answer.problem)


async def test_a_caller_without_xcom_permission_gets_the_result_without_values(
    auth_server: RunningServer, airflow: AirflowSql, key: RunKey, ada: CallerPermissions
) -> None:
    ada.forbid_xcoms()
    async with sse(auth_server.url, key, headers=ada.headers) as events:
        await events.next()
        await airflow.complete_chain(key)
        result = (await events.until("result"))[-1]
        assert (result["results"], result["withheld"]) == ({}, True)
        assert "references" not in result
        assert (await events.rest())[-1]["outcome"] == "result"
    async with client_for(auth_server, ada) as client:
        answer = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result")
        assert (answer.status_code, answer.json()["results"], answer.json()["withheld"]) == (200, {}, True)
        bare = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?unwrap=true")
        assert (bare.status_code, bare.json()["title"]) == (403, "No result")
        assert "because" not in answer.text + bare.text


async def test_each_caller_of_a_run_gets_what_they_can_read(
    auth_server: RunningServer, airflow: AirflowSql, key: RunKey, ada: CallerPermissions, permissions: StubPermissions
) -> None:
    vera = CallerPermissions(unsigned_jwt(sub="vera"))
    vera.forbid_xcoms()
    permissions.callers.append(vera)
    async with (
        sse(auth_server.url, key, headers=ada.headers) as full_stream,
        sse(auth_server.url, key, headers=vera.headers) as redacted,
    ):
        await full_stream.next()
        await redacted.next()
        await airflow.complete_chain(key)
        assert (await full_stream.until("result"))[-1]["results"] == {"answer": {"text": "because"}}
        assert (await redacted.until("result"))[-1]["results"] == {}


async def test_a_trigger_redacts_values_too(
    auth_server: RunningServer,
    stub: AirflowStub,
    ada: CallerPermissions,
) -> None:
    ada.forbid_xcoms()

    async def answer(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.complete_chain(key)

    stub.then = answer
    async with client_for(auth_server, ada) as client:
        answer_ = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert (answer_.json()["outcome"], answer_.json()["withheld"]) == ("result", True)
    assert "because" not in answer_.text


async def test_a_caller_that_cannot_read_the_run_triggers_nothing(
    auth_server: RunningServer,
    stub: AirflowStub,
    ada: CallerPermissions,
) -> None:
    ada.of_dag["chat"] = refusal(403, "Forbidden")
    async with client_for(auth_server, ada) as client:
        answer = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert answer.status_code == 403
    assert stub.triggers == []


async def test_the_same_permission_is_looked_up_once(
    settings: Callable[..., Settings],
    stub: AirflowStub,
    permissions: StubPermissions,
    ada: CallerPermissions,
    airflow: AirflowSql,
) -> None:
    for number in range(5):
        await airflow.trigger(RunKey("chat", f"r{number}"), stub.version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url)) as server, client_for(server, ada) as client:
        await eventually_async(lambda: server.hub.is_live)
        paths = [f"/api/v2/dags/chat/dagRuns/r{number % 5}/result?timeout=0" for number in range(40)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
    assert {answer.status_code for answer in answers} == {202}
    assert len([request for request in stub.received if "xcomEntries" in request.target]) == 1
    assert len(stub.received) == 3, "runs, XComs and requests for human input"

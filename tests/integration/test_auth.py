"""Airflow decides who may see what, before a stream begins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.raw_connection import UPGRADE, raw, request
from support.server import RunningServer, running_server
from support.streams import sse, stream_path
from support.stub_callers import Door, Rights, client_of, jwt, refused
from support.waiting import eventually_async

PATHS = {
    "stream": "/stream",
    "result": "/result?timeout=0",
    "wait": "/wait?interval=1",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("status", "said"), [(401, "Not authenticated"), (401, "Token Expired"), (403, "Forbidden")])
async def test_a_refusal_of_airflows_is_passed_on_whether_or_not_the_run_is_there(
    guarded: RunningServer, key: RunKey, ada: Rights, path: str, status: int, said: str, *, there: bool
) -> None:
    ada.runs = ada.xcoms = refused(status, said)
    run = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id if there else 'nowhere'}"
    async with client_of(guarded, ada) as client:
        answer = await client.get(f"{run}{path}")
    assert (answer.status_code, answer.json()["detail"]) == (status, said)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    form = "application/json" if path.startswith("/wait") else "application/problem+json"
    assert answer.headers["content-type"] == form


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_who_may_read_runs_is_told_that_there_is_none(guarded: RunningServer, ada: Rights, path: str) -> None:
    async with client_of(guarded, ada) as client:
        answers = [await client.get(f"/api/v2/dags/chat/dagRuns/nowhere{path}") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]


async def test_a_run_whose_name_is_another_path_is_nowhere(guarded: RunningServer, ada: Rights) -> None:
    async with client_of(guarded, ada) as client:
        answer = await client.get("/api/v2/dags/chat/dagRuns/%2E%2E/result")
    assert answer.status_code == 404


async def test_without_credentials_nothing_is_told(guarded: RunningServer, key: RunKey) -> None:
    async with client_of(guarded) as client:
        for path in (f"/api/v2/dags/chat/dagRuns/{key.run_id}/stream", "/api/v2/stream", "/api/v2/dags/chat/stream"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["detail"]) == (401, "Not authenticated")


async def test_all_cookies_are_as_good_as_a_token(guarded: RunningServer, key: RunKey, ada: Rights) -> None:
    headers = {"Cookie": f"theme=dark; _token={ada.token}; _access_token=more"}
    async with sse(guarded.url, key, headers=headers) as events:
        assert (await events.next())["type"] == "snapshot"


async def test_a_header_that_can_not_be_sent_on_is_told_without_it(guarded: RunningServer, key: RunKey) -> None:
    async with client_of(guarded) as client:
        answer = await client.get(stream_path(key), headers=[(b"Authorization", b"Bearer s\xe9cret")])
    assert answer.status_code == 401
    assert "cret" not in answer.text


@pytest.mark.parametrize("header", ["Authorization: Bearer s\x01cret", "Cookie: _token=s\x7fcret\x02"])
@pytest.mark.parametrize("upgrade", [(), UPGRADE])
async def test_a_header_that_none_may_send_is_a_fault_of_the_client(
    guarded: RunningServer, key: RunKey, header: str, upgrade: tuple[str, ...]
) -> None:
    async with raw(guarded.url) as client:
        await client.say(request(stream_path(key), header, *upgrade))
        answer = await client.answer()
    assert answer.status == 400
    assert "cret" not in json.dumps(answer.problem)


async def test_who_may_not_read_xcoms_hears_that_there_is_a_result(
    guarded: RunningServer, airflow: AirflowSql, key: RunKey, ada: Rights
) -> None:
    ada.withhold()
    async with sse(guarded.url, key, headers=ada.headers) as events:
        await events.next()
        await airflow.answer(key)
        result = (await events.until("result"))[-1]
        assert (result["results"], result["withheld"]) == ({}, True)
        assert "references" not in result
        assert (await events.rest())[-1]["outcome"] == "result"
    async with client_of(guarded, ada) as client:
        answer = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result")
        assert (answer.status_code, answer.json()["results"], answer.json()["withheld"]) == (200, {}, True)
        bare = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?unwrap=true")
        assert (bare.status_code, bare.json()["title"]) == (403, "No result")
        assert "because" not in answer.text + bare.text


async def test_callers_of_one_run_are_told_what_each_may_see(
    guarded: RunningServer, airflow: AirflowSql, key: RunKey, ada: Rights, door: Door
) -> None:
    viewer = Rights(jwt(sub="vera"))
    viewer.withhold()
    door.callers.append(viewer)
    async with sse(guarded.url, key, headers=ada.headers) as hers, sse(guarded.url, key, headers=viewer.headers) as his:
        await hers.next()
        await his.next()
        await airflow.answer(key)
        assert (await hers.until("result"))[-1]["results"] == {"answer": {"text": "because"}}
        assert (await his.until("result"))[-1]["results"] == {}


async def test_a_trigger_withholds_too(
    guarded: RunningServer,
    stub: AirflowStub,
    ada: Rights,
) -> None:
    ada.withhold()

    async def answer(airflow: AirflowSql, key: RunKey) -> None:
        await airflow.answer(key)

    stub.then = answer
    async with client_of(guarded, ada) as client:
        answer_ = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert (answer_.json()["outcome"], answer_.json()["withheld"]) == ("result", True)
    assert "because" not in answer_.text


async def test_who_may_not_read_what_he_triggers_triggers_nothing(
    guarded: RunningServer,
    stub: AirflowStub,
    ada: Rights,
) -> None:
    ada.of_dag["chat"] = refused(403, "Forbidden")
    async with client_of(guarded, ada) as client:
        answer = await client.post("/api/v2/dags/chat/dagRuns?wait_for_completion=true", json={})
    assert answer.status_code == 403
    assert stub.triggers == []


async def test_the_same_question_is_asked_once(
    settings: Callable[..., Settings],
    stub: AirflowStub,
    door: Door,
    ada: Rights,
    airflow: AirflowSql,
) -> None:
    for number in range(5):
        await airflow.trigger(RunKey("chat", f"r{number}"), stub.version, list(CHAIN))
    async with running_server(settings(airflow_url=stub.url)) as server, client_of(server, ada) as client:
        await eventually_async(lambda: server.hub.is_live)
        paths = [f"/api/v2/dags/chat/dagRuns/r{number % 5}/result?timeout=0" for number in range(40)]
        answers = await asyncio.gather(*(client.get(path) for path in paths))
    assert {answer.status_code for answer in answers} == {202}
    assert len([asked for asked in stub.asked if "xcomEntries" in asked.target]) == 1
    assert len(stub.asked) == 2

"""Trigger a DAG and get its result in one call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints import result
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, TruncatedResponse
from support.airflow_stub_fixtures import ANSWER, COOKIES, RUNS, TOKEN, WAIT, client_with_token, complete_run, run_path
from support.server import RunningServer, running_server
from support.streams import Events, Frame, types
from support.waiting import eventually_async

MAYBE = "the run may have been created all the same"


async def frames_of(response: httpx.Response) -> list[Frame]:
    """Return the frames of a stream in either form."""
    if response.headers["content-type"].startswith("text/event-stream"):
        return await Events(response).rest()
    return [json.loads(line) async for line in response.aiter_lines()]


async def transitions(airflow: AirflowSql, key: RunKey) -> list[tuple[Any, ...]]:
    rows = await airflow.connection.fetch(
        "SELECT id, kind, task_id, state FROM stream_server.journal"
        " WHERE dag_id = $1 AND run_id = $2 AND kind IN ('task', 'run') ORDER BY id",
        *key,
    )
    return [tuple(row) for row in rows]


def transitions_of(frames: list[Frame]) -> list[tuple[Any, ...]]:
    return [
        (frame["seq"], frame["type"], frame.get("task_id"), frame["state"])
        for frame in frames
        if frame["type"] in {"task", "run"}
    ]


async def test_one_call_triggers_a_run_and_returns_its_result(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    calling = asyncio.create_task(caller.post(WAIT, json={"conf": {"question": "why"}, "note": "x"}))
    await eventually_async(lambda: trigger_server.hub.statistics().subscriptions == 1)
    assert stub.triggers[0].json == {"conf": {"question": "why"}, "note": "x", "logical_date": None}
    await airflow.complete_chain(RunKey("chat", "manual__1"))
    answer = await calling
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "dag_id": "chat",
        "dag_run_id": "manual__1",
        "state": "running",
        "outcome": "result",
        "results": {"answer": ANSWER},
    }
    assert answer.headers["location"] == run_path("manual__1")
    assert answer.headers["content-location"] == run_path("manual__1") + "/result"
    assert (await caller.get(answer.headers["content-location"])).json() == answer.json()


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_no_frame_is_missed_of_a_run_that_ends_before_airflow_responds(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, accept: str
) -> None:
    stub.then = complete_run
    async with caller.stream(
        "POST", f"{WAIT}&until=run", json={"dag_run_id": "fast one"}, headers={"Accept": accept}
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == accept
        assert response.headers["location"] == run_path("fast%20one")
        assert response.headers["content-location"] == run_path("fast%20one") + "/stream?until=run"
        frames = await frames_of(response)
    assert types(frames)[0] == "snapshot"
    assert (frames[0]["run"]["state"], frames[0]["tasks"]) == (None, [])
    assert transitions_of(frames) == await transitions(airflow, RunKey("chat", "fast one"))
    assert len(transitions_of(frames)) > 15
    assert types(frames)[-2:] == ["result", "end"]
    assert frames[-2]["results"] == {"answer": ANSWER}


async def test_a_blocking_call_returns_the_result_of_such_a_run(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    stub.then = complete_run
    answer = await caller.post(f"{WAIT}&unwrap=true&timeout=10s&result=answer", json={})
    assert (answer.status_code, answer.json()) == (200, ANSWER)
    again = answer.headers["content-location"]
    assert again == run_path("manual__1") + "/result?unwrap=true&timeout=10s&result=answer"
    assert (await caller.get(again)).json() == ANSWER


async def test_a_stream_starts_with_the_first_row_of_the_run(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    """Half of the transitions commit before Airflow responds, half after: each is sent once and in order."""

    async def half(session: AirflowSql, key: RunKey) -> None:
        await session.set_run(key, "running")
        await session.run_task(key, "ask", 1)
        await session.start_task(key, "answer")

    stub.then = half
    key = RunKey("chat", "manual__1")
    async with caller.stream("POST", WAIT, json={}, headers={"Accept": "text/event-stream"}) as response:
        events = Events(response)
        frames = [await events.next()]
        await airflow.push(key, "answer", 2)
        await airflow.set_task(key, "answer", "success")
        frames += await events.rest()
    written = await transitions(airflow, key)
    assert transitions_of(frames) == written[: len(transitions_of(frames))]
    assert len(transitions_of(frames)) >= len(written) - 1, "the stream ends with the result, before the task's success"
    assert types(frames)[-2:] == ["result", "end"]


async def test_a_broken_call_is_resumed_at_its_content_location(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    async with caller.stream("POST", WAIT, json={}, headers={"Accept": "application/x-ndjson"}) as response:
        await anext(response.aiter_lines())
        url = response.headers["content-location"]
    await airflow.complete_chain(RunKey("chat", "manual__1"))
    answer = await caller.get(url, headers={"Accept": "application/x-ndjson"})
    assert types([json.loads(line) for line in answer.text.splitlines()]) == ["snapshot", "result", "end"]
    assert len(stub.triggers) == 1


async def test_a_timeout_returns_the_url_of_the_result(caller: httpx.AsyncClient) -> None:
    answer = await caller.post(f"{WAIT}&timeout=0&confirm=success", json={})
    assert (answer.status_code, answer.json()["outcome"]) == (202, "pending")
    assert answer.headers["location"] == run_path("manual__1") + "/result?timeout=0&confirm=success"
    assert answer.headers["retry-after"] == "1"


async def test_a_call_with_until_run_is_resumed_with_until_run(caller: httpx.AsyncClient, airflow: AirflowSql) -> None:
    answer = await caller.post(f"{WAIT}&timeout=0&until=run", json={})
    assert answer.status_code == 202
    url = answer.headers["content-location"]
    assert url == answer.headers["location"] == run_path("manual__1") + "/result?timeout=0&until=run"
    key = RunKey("chat", "manual__1")
    await airflow.complete_chain(key)
    assert (await caller.get(url)).status_code == 202, "the result is known, and the run has not ended"
    await airflow.set_run(key, "success")
    ended = (await caller.get(url.replace("timeout=0", "timeout=10s"))).json()
    assert (ended["state"], ended["outcome"]) == ("success", "result")


async def test_a_failure_is_in_the_body_or_in_the_status(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    async def fail(session: AirflowSql, key: RunKey) -> None:
        await session.start_task(key, "ask")
        await session.set_task(key, "ask", "failed")

    stub.then = fail
    full = await caller.post(WAIT, json={})
    assert (full.status_code, full.json()["outcome"], full.json()["failure"]["task_id"]) == (200, "failure", "ask")
    bare = await caller.post(f"{WAIT}&unwrap=true&fail_status=418", json={})
    assert (bare.status_code, bare.json()["outcome"]) == (418, "failure")
    assert bare.headers["location"] == run_path("manual__2")
    assert bare.headers["content-location"] == run_path("manual__2") + "/result?unwrap=true&fail_status=418"


async def test_no_outcome_is_in_the_body_or_in_the_status(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    async def mark_as_success(session: AirflowSql, key: RunKey) -> None:
        await session.start_task(key, "ask")
        async with session.connection.transaction():
            await session.set_run(key, "success")
            await session.set_task(key, "ask", "success")
            await session.set_task(key, "answer", "skipped")

    stub.then = mark_as_success
    full = await caller.post(WAIT, json={})
    assert (full.status_code, full.json()["outcome"], full.json()["reason"]) == (200, "none", "run_ended")
    bare = await caller.post(f"{WAIT}&unwrap=true&fail_status=418", json={})
    assert (bare.status_code, bare.content) == (204, b"")
    assert bare.headers["location"] == run_path("manual__2")


async def test_an_error_after_the_trigger_names_the_run(caller: httpx.AsyncClient) -> None:
    answer = await caller.post(f"{WAIT}&result=missing", json={})
    assert (answer.status_code, answer.json()["title"]) == (422, "Unknown task")
    assert f"Run 'manual__1' was triggered; follow it at {run_path('manual__1')}" in answer.json()["detail"]
    assert answer.headers["location"] == run_path("manual__1")


@pytest.mark.parametrize("query", ["", "?wait_for_completion=false&x=%2F%C3%A4"])
async def test_without_wait_for_completion_the_request_is_forwarded_unchanged(
    caller: httpx.AsyncClient, stub: AirflowStub, query: str
) -> None:
    content = b'{"detail": [1,  2]}'

    async def answer(_received: ReceivedRequest) -> Response:
        response = Response(content, 422, {"X-Airflow": "yes"}, "application/json; of=airflow")
        response.set_cookie("_token", "a-new-one")
        response.set_cookie("other", "one-more")
        return response

    stub.instead = answer
    body = b'{"conf":  {"a": 1.0}}'
    path = f"/api/v2/dags/a%3Fb%20c/dagRuns{query}"
    got = await caller.post(path, content=body, headers={"Content-Type": "application/json", "Accept": "x/y"})
    (received,) = stub.received
    assert (received.target, received.body) == (path, body)
    assert (received.headers["content-type"], received.headers["accept"]) == ("application/json", "x/y")
    assert (received.headers["authorization"], received.headers["cookie"]) == (TOKEN, COOKIES)
    assert (got.status_code, got.content, got.headers["x-airflow"]) == (422, content, "yes")
    assert got.headers["content-type"] == "application/json; of=airflow"
    assert [one.partition(";")[0] for one in got.headers.get_list("set-cookie")] == [
        "_token=a-new-one",
        "other=one-more",
    ]


@pytest.mark.parametrize("query", ["", "?wait_for_completion=true"])
async def test_without_an_airflow_url_no_run_is_triggered(server: RunningServer, query: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.post(f"{RUNS}{query}", json={})
        stop = await client.post(f"{RUNS}/r/cancel")
    assert (answer.status_code, answer.json()["title"]) == (501, "Airflow address unknown")
    assert stop.status_code == 501


@pytest.mark.parametrize("query", ["", "?wait_for_completion=true"])
async def test_an_unreachable_airflow_returns_502_and_no_run_was_created(
    settings: Callable[..., Settings], unused_tcp_port: int, query: str
) -> None:
    async with running_server(settings(auth="none", airflow_url=f"http://127.0.0.1:{unused_tcp_port}")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.post(f"{RUNS}{query}", json={})
    problem = answer.json()
    assert (answer.status_code, problem["title"]) == (502, "Airflow does not answer")
    assert f"http://127.0.0.1:{unused_tcp_port}" in problem["detail"]
    assert "created" not in problem["detail"]


@pytest.mark.parametrize("query", ["", "?wait_for_completion=true"])
async def test_a_slow_airflow_returns_504_and_the_run_may_exist(
    settings: Callable[..., Settings], stub: AirflowStub, query: str
) -> None:
    async def hang(_session: AirflowSql, _key: RunKey) -> None:
        await stub.hang()

    stub.then = hang
    async with running_server(settings(auth="none", airflow_url=stub.url, airflow_timeout="200ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_with_token(server) as caller:
            answer = await caller.post(f"{RUNS}{query}", json={})
    problem = answer.json()
    assert (answer.status_code, problem["title"]) == (504, "Airflow is slow")
    assert problem["detail"].endswith(MAYBE)


INVALID_RUN_IDS = (b"0", b"5", b"1e300", b"9" * 4000, b"false", b"[]", b'{"a":1}')
"""Values that Airflow rejects as a run ID, too."""


async def broken_off() -> Response:
    return TruncatedResponse()


async def not_json() -> Response:
    return PlainTextResponse("<html>Please log in</html>")


async def not_a_run() -> Response:
    return JSONResponse([{"dag_run_id": "r"}])


async def server_error() -> Response:
    return JSONResponse({"detail": "boom"}, 500)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (broken_off, "The request to Airflow at"),
        (not_json, "a body that can't be read as JSON (text/plain"),
        (not_a_run, "Expected `object`, got `array`"),
        (server_error, "Airflow answered 500 to POST /api/v2/dags/chat/dagRuns: boom"),
    ],
)
async def test_an_invalid_airflow_response_returns_502_and_the_run_may_exist(
    caller: httpx.AsyncClient, stub: AirflowStub, answer: Callable[[], Awaitable[Response]], detail: str
) -> None:
    async def then(_session: AirflowSql, _key: RunKey) -> Response:
        return await answer()

    stub.then = then
    got = await caller.post(WAIT, json={})
    problem = got.json()
    assert (got.status_code, problem["title"]) == (502, "Airflow does not answer")
    assert detail in problem["detail"]
    assert problem["detail"].endswith(MAYBE)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_by_airflow_keeps_its_status_and_message(
    caller: httpx.AsyncClient, stub: AirflowStub, status: int
) -> None:
    detail: Any = "no, because" if status != 422 else [{"loc": ["body", "conf"], "msg": "no, because"}]

    async def refuse(_received: ReceivedRequest) -> Response:
        return JSONResponse({"detail": detail}, status, {"WWW-Authenticate": "Bearer"} if status == 401 else {})

    stub.instead = refuse
    got = await caller.post(WAIT, json={}, headers={"Accept": "text/event-stream"})
    problem = got.json()
    assert (got.status_code, problem["status"], problem["title"]) == (status, status, "Refused by Airflow")
    assert got.headers["content-type"] == "application/problem+json"
    message = detail if isinstance(detail, str) else json.dumps(detail)
    assert problem["detail"].endswith(f": {message}")
    assert got.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert "location" not in got.headers


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"x" * 10_001, 413, "more than 10000 bytes"),
        (b"[1]", 422, "must be a JSON object"),
        (b"{", 422, "must be a JSON object"),
        (b'{"conf":' + b"[" * 4900 + b"]" * 4900 + b"}", 422, "must be a JSON object"),
        (b"\xff", 422, "must be a JSON object"),
        (b'{"conf":{"a":1e999}}', 422, "must be a JSON object"),
        (b'{"conf":{"a":' + b"9" * 5000 + b"}}", 422, "must be a JSON object"),
        *((b'{"dag_run_id":%b}' % name, 422, "`dag_run_id` must be a string") for name in INVALID_RUN_IDS),
    ],
)
async def test_an_invalid_body_is_not_sent_to_airflow(
    caller: httpx.AsyncClient, stub: AirflowStub, body: bytes, status: int, detail: str
) -> None:
    answer = await caller.post(WAIT, content=body, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text
    assert stub.received == []


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("&wait=1", "no query parameter 'wait'"),
        ("&if_exists=maybe", "`if_exists` must be 'fail' or 'attach', got 'maybe'"),
        ("&on_disconnect=kill", "`on_disconnect` must be 'continue' or 'cancel', got 'kill'"),
        ("&grace=5s", "together with on_disconnect=cancel"),
        ("&on_disconnect=cancel&grace=x", "`grace`: 'x' is not a duration"),
        ("&timeout=x", "`timeout`: 'x' is not a duration"),
        ("&until=never", "`until` must be 'result' or 'run', got 'never'"),
    ],
)
async def test_an_invalid_parameter_is_rejected_before_the_trigger(
    caller: httpx.AsyncClient, stub: AirflowStub, query: str, detail: str
) -> None:
    answer = await caller.post(f"{WAIT}{query}", json={})
    assert (answer.status_code, detail in answer.json()["detail"]) == (422, True), answer.text
    wrong = await caller.post(f"{RUNS}?wait_for_completion=yes", json={})
    assert wrong.status_code == 422
    assert stub.received == []


async def test_numbers_are_sent_to_airflow_unchanged(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    conf = {"large": 10**400, "least": -(2**63), "exact": 0.1}
    answer = await caller.post(f"{WAIT}&timeout=0", json={"conf": conf}, headers={"Idempotency-Key": "large"})
    assert answer.status_code == 202
    (received,) = stub.received
    assert received.json["conf"] == conf


async def test_the_timeout_counts_from_the_start_of_the_request(
    trigger_server: RunningServer, stub: AirflowStub, caller: httpx.AsyncClient
) -> None:
    async def respond_late(_airflow: AirflowSql, _key: RunKey) -> None:
        await asyncio.sleep(1.5)

    stub.then = respond_late
    began = asyncio.get_running_loop().time()
    answer = await caller.post(f"{WAIT}&timeout=2s", json={})
    assert (answer.status_code, "location" in answer.headers) == (202, True)
    assert 2 <= asyncio.get_running_loop().time() - began < 3.4


def test_the_default_timeout_is_shorter_than_that_of_proxies() -> None:
    # nginx waits for 60 s, Heroku and some CDNs for 30 s.
    assert result.DEFAULT_TIMEOUT + result.VALUE_READ_SECONDS <= 25

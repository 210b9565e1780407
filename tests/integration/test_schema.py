"""The API documents describe all frames on all transports and all responses of a running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from stream_server.domain.run_state import RunKey
from stream_server.http.docs import asyncapi, openapi, responses
from stream_server.http.endpoints.probe import PROBE_PATH
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import RUNS, WAIT
from support.openapi_validation import make_validator, response_errors, validation_errors
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Events, Frame, frames_of, stream_path, types, websocket
from support.waiting import eventually_async

TRANSPORTS = ["sse", "websocket", "ndjson"]
MEDIA_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


async def watch(url: str, run: RunKey, transport: str, query: str = "") -> list[Frame]:
    """Return all frames of a stream, up to the end of the connection."""
    if transport == "websocket":
        async with websocket(url, run, query) as connection:
            return await frames_of(connection)
    headers = {"Accept": MEDIA_TYPES[transport]}
    async with (
        httpx.AsyncClient(base_url=url, timeout=DEADLINE) as client,
        client.stream("GET", stream_path(run, query), headers=headers) as response,
    ):
        assert find_head_errors(response, f"{openapi.RUN_PATH}/stream") == []
        if transport == "sse":
            return await Events(response).rest()
        return [json.loads(line) async for line in response.aiter_lines()]


def find_head_errors(response: httpx.Response, path: str) -> list[str]:
    return [problem for problem in response_errors(response, path) if not problem.startswith("$")]


def assert_described(frames: list[Frame], channel: str) -> None:
    """Check that each frame is valid, has only described members, and belongs to the channel."""
    names = asyncapi.build_asyncapi()["channels"][channel]["messages"]
    messages = asyncapi.build_asyncapi()["components"]["messages"]
    known = {messages[name]["name"] for name in names}
    for frame in frames:
        assert validation_errors("Frame", frame, strictly=True) == []
    assert set(types(frames)) <= known


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_frame_of_a_run_is_described(
    server: RunningServer, airflow: AirflowSql, run: RunKey, transport: str
) -> None:
    watching = asyncio.create_task(watch(server.url, run, transport, "?until=run"))
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
    await airflow.set_run(run, "running")
    await airflow.run_task(run, "answer", {"text": "because"})
    async with websocket(server.url, run, "?until=run") as connection:
        while json.loads(await connection.recv())["type"] != "result":
            pass
    await airflow.clear(run, ["answer"])
    await airflow.start_task(run, "answer")
    await airflow.set_task(run, "answer", "failed")
    await airflow.set_run(run, "failed")
    frames = await watching
    assert_described(frames, "run")
    assert set(types(frames)) == {"snapshot", "run", "task", "result", "reset", "failure", "end"}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_frame_of_a_resumed_stream_is_described(
    server: RunningServer, airflow: AirflowSql, run: RunKey, transport: str
) -> None:
    await airflow.run_task(run, "answer", "because")
    async with websocket(server.url, run, "?until=run") as connection:
        frames = [json.loads(await connection.recv())]
        while frames[-1]["type"] != "result":
            frames.append(json.loads(await connection.recv()))
    cursor = frames[-1]["cursor"]
    await airflow.set_run(run, "success")
    resumed = await watch(server.url, run, transport, f"?until=run&cursor={cursor}")
    damaged = await watch(server.url, run, transport, "?until=run&cursor=damaged")
    assert types(resumed) == ["resumed", "run", "end"]
    assert types(damaged)[:2] == ["reset", "snapshot"]
    assert_described([*resumed, *damaged], "run")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_heartbeat_and_a_close_are_described(
    settings: Callable[..., Settings], run: RunKey, transport: str
) -> None:
    async with running_server(settings(ping_interval="50ms")) as server:
        await eventually_async(lambda: server.hub.is_live)
        watching = asyncio.create_task(watch(server.url, run, transport))
        await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
        async with websocket(server.url, run) as connection:
            assert json.loads(await connection.recv())["type"] == "snapshot"
            assert json.loads(await connection.recv()) == {"type": "ping"}
        await server.hub.drain(5)
    frames = await watching
    assert_described(frames, "run")
    assert types(frames)[-1] == "close"


async def test_every_frame_of_the_firehose_is_described(
    server: RunningServer, airflow: AirflowSql, run: RunKey
) -> None:
    address = server.url.replace("http", "ws", 1) + openapi.FIREHOSE_PATH
    frames: list[Frame] = []
    async with connect(address, proxy=None) as connection:

        async def receive_until(kind: str) -> None:
            while types(frames)[-1:] != [kind]:
                frames.append(json.loads(await asyncio.wait_for(connection.recv(), DEADLINE)))

        for message in (
            {"op": "subscribe", "id": "one", "dag_id": run.dag_id, "run_id": run.run_id},
            {"op": "subscribe", "id": "many", "dag_id": [run.dag_id]},
            {"op": "subscribe", "id": "none", "dag_id": run.dag_id, "run_id": "missing"},
        ):
            assert find_message_errors(message) == []
            await connection.send(json.dumps(message))
        await receive_until("error")
        await airflow.run_task(run, "answer", 1)
        await receive_until("end")
    assert_described(frames, "manyStreams")
    assert {"ack", "error", "snapshot", "task", "result", "end"} <= set(types(frames))
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as client,
        client.stream("GET", openapi.FIREHOSE_PATH, params={"cursor": "damaged"}) as response,
    ):
        events = Events(response)
        received = await events.until("reset")
        await airflow.set_run(run, "success")
        received += await events.until("run")
        assert find_head_errors(response, openapi.FIREHOSE_PATH) == []
    assert_described(received, "allRuns")


def find_message_errors(message: dict[str, Any]) -> list[str]:
    components = asyncapi.build_asyncapi()["components"]
    schema = {"$ref": "#/components/schemas/Subscribe", "components": components}
    return [error.message for error in make_validator(schema).iter_errors(message)]


async def test_every_response_is_described(
    trigger_server: RunningServer, caller: httpx.AsyncClient, airflow: AirflowSql, stub: AirflowStub, run: RunKey
) -> None:
    await eventually_async(lambda: trigger_server.hub.is_live)
    runs, one = openapi.RUNS_PATH, openapi.RUN_PATH
    here = stream_path(run).removesuffix("/stream")

    async def request(status: int, path: str, target: str, method: str = "GET", **what: Any) -> httpx.Response:
        response = await caller.request(method, target, **what)
        assert response.status_code == status, f"{method} {target}: {response.text}"
        assert response_errors(response, path) == [], f"{method} {target}"
        return response

    for path, media_type in (("/openapi.json", responses.JSON_TYPE), ("/schema/frames.json", responses.SCHEMA_TYPE)):
        assert (await request(200, path, path)).headers["content-type"] == media_type
    for path in ("/asyncapi.json", "/health", "/ready", "/metrics"):
        await request(200, path, path)
    await request(200, PROBE_PATH, PROBE_PATH)
    await request(202, f"{one}/result", f"{here}/result?timeout=0")
    await airflow.run_task(run, "answer", {"text": "because"})
    await request(200, f"{one}/result", f"{here}/result")
    await request(200, f"{one}/result", f"{here}/result?unwrap=true")
    ended = await request(200, f"{one}/stream", f"{here}/stream", headers={"Accept": "application/x-ndjson"})
    cursor = json.loads(ended.text.splitlines()[-1])["cursor"]
    await request(204, f"{one}/stream", f"{here}/stream", headers={"Last-Event-ID": cursor})
    await airflow.start_task(run, "ask")
    await airflow.set_task(run, "ask", "failed")
    await request(200, f"{one}/result", f"{here}/result?result=ask")
    await request(502, f"{one}/result", f"{here}/result?result=ask&unwrap=true")
    await airflow.start_task(run, "clean_up")
    await airflow.set_task(run, "clean_up", "skipped")
    await airflow.set_run(run, "success")
    await request(200, f"{one}/result", f"{here}/result?result=clean_up")
    await request(204, f"{one}/result", f"{here}/result?result=clean_up&unwrap=true")
    for what in ("stream", "result"):
        await request(404, f"{one}/{what}", f"{RUNS}/missing/{what}")
        await request(422, f"{one}/{what}", f"{here}/{what}?result=missing")
        await request(422, f"{one}/{what}", f"{here}/{what}?color=blue")
    await request(422, openapi.FIREHOSE_PATH, f"{openapi.FIREHOSE_PATH}?type=chore")
    await request(404, f"{one}/wait", f"{RUNS}/missing/wait?interval=1")
    await request(422, f"{one}/wait", f"{here}/wait")
    await request(202, runs, f"{WAIT}&timeout=0", "POST", json={})
    await request(422, runs, f"{WAIT}&timeout=soon", "POST", json={})
    await request(422, runs, WAIT, "POST", content=b"[]")
    await request(413, runs, WAIT, "POST", json={"conf": "x" * 20_000})
    await request(403, runs, WAIT, "POST", json={}, headers={"Origin": "https://elsewhere.example.com"})
    await request(409, runs, WAIT, "POST", json={"dag_run_id": run.run_id})
    await request(200, f"{one}/cancel", f"{here}/cancel", "POST")
    await request(404, f"{one}/cancel", f"{RUNS}/missing/cancel", "POST")


async def test_responses_without_airflow_and_while_draining_are_described(server: RunningServer, run: RunKey) -> None:
    here = stream_path(run).removesuffix("/stream")
    async with httpx.AsyncClient(base_url=server.url) as client:
        unknown = [await client.post(WAIT, json={}), await client.post(f"{here}/cancel")]
        await server.hub.drain(1)
        refused = [await client.get(f"{here}/{what}") for what in ("stream", "result")]
        unready = await client.get("/ready")
    paths = (openapi.RUNS_PATH, *(f"{openapi.RUN_PATH}/{what}" for what in ("cancel", "stream", "result")), "/ready")
    answers = [*unknown, *refused, unready]
    assert [answer.status_code for answer in answers] == [501, 501, 503, 503, 503]
    assert [response_errors(answer, path) for answer, path in zip(answers, paths, strict=True)] == [[]] * 5


async def test_lines_of_wait_are_described(server: RunningServer, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.run_task(run, "answer", [1])
    await airflow.set_run(run, "success")
    path = stream_path(run).removesuffix("stream") + "wait?interval=1&result=answer"
    async with httpx.AsyncClient(base_url=server.url) as client:
        lines = (await client.get(path)).text.splitlines()
    assert json.loads(lines[-1]) == {"state": "success", "results": {"answer": [1]}}
    assert [validation_errors("WaitLine", json.loads(line), strictly=True) for line in lines] == [[]] * len(lines)


@pytest.mark.parametrize("path", ["/openapi.json", "/asyncapi.json", "/schema/frames.json"])
async def test_a_document_is_not_sent_to_a_client_that_has_it(server: RunningServer, path: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        first = await client.get(path)
        etag = first.headers["etag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
            again = await client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
            assert response_errors(again, path) == []
        other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.json()) == (200, first.json())
    assert first.headers["cache-control"] == "no-cache"


def query_parameters(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the described query parameters with their schemas."""
    parameters = openapi.build_openapi()["paths"][path]["get"]["parameters"]
    return [(parameter["name"], parameter["schema"]) for parameter in parameters if parameter["in"] == "query"]


def boundary_values(schema: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return boundary values inside and outside of a schema."""
    items = schema.get("items", {})
    values = [*schema.get("enum", []), *items.get("enum", [])]
    valid: list[Any] = [*values, *schema.get("examples", [])]
    invalid: list[Any] = ["nonsense"] if valid else []
    if "minimum" in schema:
        valid += [schema["minimum"], schema["maximum"]]
        invalid += [schema["minimum"] - 1, schema["maximum"] + 1]
    if "maxItems" in schema:
        invalid.append([(valid or ["x"])[0]] * (schema["maxItems"] + 1))
    if "minLength" in items:
        valid.append("answer")
        invalid.append("")
    if schema["type"] == "boolean":
        valid += ["true", "false"]
        invalid.append("yes")
    return [*valid, *([schema["default"]] if schema.get("default") else [])], invalid


@pytest.mark.parametrize(
    "path",
    [f"{openapi.RUN_PATH}/stream", f"{openapi.RUN_PATH}/result", openapi.FIREHOSE_PATH, openapi.DAG_FIREHOSE_PATH],
)
async def test_accepted_parameters_are_the_described_ones(
    server: RunningServer, airflow: AirflowSql, run: RunKey, path: str
) -> None:
    await airflow.run_task(run, "answer", 1)
    target = path.format(**run._asdict())
    at_once = {"timeout": "0"} if path.endswith("/result") else {}
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as client:
        for name, schema in query_parameters(path):
            valid, invalid = boundary_values(schema)
            for value in valid:
                async with client.stream("GET", target, params={**at_once, name: value}) as response:
                    assert response.is_success, (name, value)
            for value in invalid:
                assert (await client.get(target, params={name: value})).status_code == 422, (name, value)
        refusal = (await client.get(target, params={"nonsense": "x"})).json()["detail"]
    known = set(refusal.partition("; it has ")[2].split(", ")) - {name for name in ("dag_id",) if "{dag_id}" in path}
    # The server removes the ticket from the URL before it checks the parameters.
    assert known == {name for name, _ in query_parameters(path)} - {"ticket"}

"""Firehose streams with a filter, and the multiplexed WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.multi_process_server import MultiProcessServer
from support.server import RunningServer, running_server, server_process
from support.streams import DEADLINE, Events, Frame, frames_of, sse, types
from support.waiting import eventually_async


@pytest.fixture
async def runs(airflow: AirflowSql, server: RunningServer) -> list[RunKey]:
    """Two runs of one DAG, and one of another DAG, which has a tag. The tail has read their first rows."""
    keys = []
    for dag_id in ("chat", "report"):
        version = await airflow.add_dag(dag_id, CHAIN, {"clean_up": False})
        for number in range(2 if dag_id == "chat" else 1):
            keys.append(RunKey(dag_id, f"run_{number}"))
            await airflow.trigger(keys[-1], version, list(CHAIN))
    await airflow.connection.execute("INSERT INTO dag_tag (name, dag_id) VALUES ('nightly', 'report')")
    newest = await airflow.connection.fetchval("SELECT max(txid)::text::bigint FROM stream_server.journal")
    await eventually_async(
        lambda: server.hub.is_live and server.hub.cursor.is_visible(newest), what="the tail has read the first rows"
    )
    return keys


@asynccontextmanager
async def following(
    server: RunningServer | MultiProcessServer, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        yield Events(response)


async def set_states(airflow: AirflowSql, runs: list[RunKey], state: str) -> None:
    for key in runs:
        await airflow.set_run(key, state)
        await airflow.set_task(key, "ask", "scheduled" if state == "queued" else state)


def summarize(frames: list[Frame]) -> list[tuple[str, str, str]]:
    return [(frame["dag_id"], frame["run_id"], frame["type"]) for frame in frames]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v2/stream", [("chat", "run_0"), ("chat", "run_1"), ("report", "run_0")]),
        ("/api/v2/dags/chat/stream", [("chat", "run_0"), ("chat", "run_1")]),
        ("/api/v2/stream?dag_id=report&dag_id=chat&run_id=run_0", [("chat", "run_0"), ("report", "run_0")]),
        ("/api/v2/stream?tag=nightly", [("report", "run_0")]),
        ("/api/v2/stream?tag=nightly&tag=weekly", [("report", "run_0")]),
    ],
)
async def test_a_stream_has_all_runs_that_match_its_filter(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey], path: str, expected: list[tuple[str, str]]
) -> None:
    async with following(server, path) as events:
        assert (await events.next())["type"] == "ping"
        assert events.ids[-1] is not None, "the first frame has a cursor already"
        await set_states(airflow, runs, "running")
        frames = [await events.next() for _ in range(2 * len(expected))]
    assert summarize(frames) == [(*run, kind) for run in expected for kind in ("run", "task")]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?type=run", ["run"] * 3),
        ("?task_id=ask", ["task"] * 3),
        ("?type=task&state=running&dag_id=report", ["task"]),
        ("?state=running&run_id=run_1", ["run", "task"]),
    ],
)
async def test_types_states_and_tasks_are_filtered_too(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey], query: str, expected: list[str]
) -> None:
    async with following(server, f"/api/v2/stream{query}") as events:
        await events.next()
        await set_states(airflow, runs, "running")
        assert types([await events.next() for _ in expected]) == expected


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("?type=result", "`type` must be one of task, run"),
        ("?state=Running", "`state` must be one of awaiting_input, deferred"),
        ("?state=a%0Ab", "`state` must be one of awaiting_input, deferred"),
        ("?dag_id=chat&dag_id=", "`dag_id` must not be empty"),
        ("?dag=chat", "no query parameter 'dag'"),
        ("?" + "&".join(["run_id=r"] * 101), "`run_id` must have at most 100 values, got 101"),
    ],
)
async def test_an_invalid_filter_is_rejected(
    server: RunningServer, runs: list[RunKey], query: str, detail: str
) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(f"/api/v2/stream{query}")
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize("table", ["task_instance", "trigger"])
async def test_a_run_whose_instances_are_deleted_is_reset(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey], table: str
) -> None:
    async with following(server, "/api/v2/stream?type=task") as events:
        await events.next()
        cursor = events.ids[-1] or ""
        if table == "trigger":
            await airflow.wait_for_trigger(runs[0], "ask")
            await airflow.connection.execute("DELETE FROM trigger")
        else:
            await airflow.delete_instances(runs[0], "ask")
        (reset,) = await events.until("reset")
        assert reset == {"type": "reset", **runs[0]._asdict(), "reason": "run_changed"}
    async with following(server, "/api/v2/stream", {"Last-Event-ID": cursor}) as events:
        assert types(await events.until("reset")) == ["resumed", "reset"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_state_of_a_later_airflow_is_filtered_with_a_warning(
    journal: str, airflow: AirflowSql, runs: list[RunKey], unused_tcp_port: int, workers: int
) -> None:
    arguments = ("--port", str(unused_tcp_port), "--workers", str(workers))
    async with server_process(*arguments, STREAM_SERVER_DATABASE_URL=journal) as process:
        server = MultiProcessServer(process, f"http://127.0.0.1:{unused_tcp_port}", None)
        log_reader = asyncio.create_task(server.read_log())
        await server.wait_until_ready()
        async with following(server, "/api/v2/stream?state=hibernating&type=task") as events:
            await events.next()
            await airflow.set_task(runs[0], "ask", "running")
            await airflow.set_task(runs[0], "ask", "hibernating")
            assert (await events.next())["state"] == "hibernating"
        process.terminate()
        await log_reader
    assert sum("names the state hibernating" in line for line in server.log) == 1


async def test_a_tag_without_dags_matches_nothing(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with (
        following(server, "/api/v2/stream?tag=missing") as nothing,
        following(server, "/api/v2/stream") as events,
    ):
        await nothing.next()
        await events.next()
        await set_states(airflow, runs, "running")
        for _ in range(6):
            await events.next()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(nothing.next(), 0.2)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_missed_frames_are_replayed_to_a_resuming_client(
    server: RunningServer, settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey], accept: str
) -> None:
    async with following(server, "/api/v2/dags/chat/stream") as events:
        await events.next()
        await airflow.set_run(runs[0], "running")
        await events.next()
        cursor = events.ids[-1]
    assert cursor is not None
    await set_states(airflow, runs[1:], "running")
    async with running_server(settings()) as other:
        await eventually_async(lambda: other.hub.is_live)
        async with (
            httpx.AsyncClient(base_url=other.url, timeout=DEADLINE) as client,
            client.stream(
                "GET", "/api/v2/dags/chat/stream", headers={"Accept": accept, "Last-Event-ID": cursor}
            ) as response,
        ):
            frames = []
            async for line in response.aiter_lines():
                if line.startswith(("data: ", "{")):
                    frames.append(json.loads(line.removeprefix("data: ")))
                if types(frames)[-1:] == ["task"]:
                    break
    # A replica that has not read so far yet first sends a ping with its own cursor.
    assert [kind for kind in types(frames) if kind != "ping"] == ["resumed", "run", "task"]


async def test_damaged_and_expired_cursors_reset_the_stream(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with following(server, "/api/v2/stream?cursor=nonsense") as events:
        reset = (await events.until("reset"))[-1]
        assert reset == {"type": "reset", "reason": "cursor_damaged"}
        cursor = events.ids[-1]
        await airflow.set_run(runs[0], "running")
        await events.until("run")
    await airflow.empty_journal()
    async with following(server, "/api/v2/stream", {"Last-Event-ID": cursor or ""}) as events:
        assert (await events.until("reset"))[-1]["reason"] == "cursor_expired"
        await airflow.set_run(runs[1], "running")
        assert (await events.until("run"))[-1]["run_id"] == "run_1"


class MultiplexClient:
    """A client of the multiplexed WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def receive(self) -> Frame:
        frame: Frame = json.loads(await asyncio.wait_for(self.connection.recv(), DEADLINE))
        return frame

    async def receive_until(self, kind: str) -> list[Frame]:
        frames = [await self.receive()]
        while frames[-1]["type"] != kind:
            frames.append(await self.receive())
        return frames


@pytest.fixture
async def multiplex(server: RunningServer) -> AsyncIterator[MultiplexClient]:
    async with connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection:
        yield MultiplexClient(connection)


async def test_many_streams_share_a_connection(
    multiplex: MultiplexClient, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    chat, _, report = runs
    await multiplex.send(op="subscribe", id="c", dag_id=chat.dag_id, run_id=chat.run_id)
    assert await multiplex.receive() == {"type": "ack", "op": "subscribe", "id": "c"}
    snapshot = await multiplex.receive()
    assert (snapshot["type"], snapshot["id"], snapshot["run_id"]) == ("snapshot", "c", chat.run_id)
    assert next(iter(snapshot)) == "type"
    await multiplex.send(op="subscribe", id="r", dag_id=[report.dag_id])
    assert (await multiplex.receive_until("ack"))[-1]["id"] == "r"
    await airflow.run_task(report, "ask", 1)
    await airflow.run_task(chat, "answer", "yes")
    frames = await multiplex.receive_until("end")
    by_stream = {name: [one for one in frames if one["id"] == name] for name in "cr"}
    assert types(by_stream["c"])[-2:] == ["result", "end"]
    assert by_stream["c"][-2]["results"] == {"answer": "yes"}
    assert {one["dag_id"] for one in by_stream["r"] if one["type"] == "task"} == {"report"}
    await multiplex.send(op="subscribe", id="c", dag_id=chat.dag_id, run_id=chat.run_id, cursor=snapshot["cursor"])
    again = await multiplex.receive_until("end")
    assert {one["id"] for one in again} == {"c"}, "the id of an ended stream can be used again"
    assert types(again)[:2] == ["ack", "resumed"]


async def test_a_subscription_resumes_from_the_cursor_of_another_connection(
    server: RunningServer, multiplex: MultiplexClient, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    key = runs[0]
    one: dict[str, Any] = {"dag_id": key.dag_id, "run_id": key.run_id}
    many: dict[str, Any] = {"dag_id": [key.dag_id]}
    async with sse(server.url, key) as run, following(server, "/api/v2/dags/chat/stream") as all_runs:
        await run.next()
        await all_runs.next()
        cursors = {"one": run.ids[-1], "many": all_runs.ids[-1]}
    await airflow.set_task(key, "ask", "scheduled")
    for name, message in (("one", one), ("many", many)):
        await multiplex.send(op="subscribe", id=name, cursor=cursors[name], **message)
        frames = [frame for frame in await multiplex.receive_until("task") if frame["type"] != "ping"]
        assert types(frames) == ["ack", "resumed", "task"]
        assert (frames[1]["since"], frames[2]["state"]) == (cursors[name], "scheduled")
        assert frames[2]["cursor"], "the stream can be resumed again"
    for number, (message, expected) in enumerate(((one, ["ack", "reset", "snapshot"]), (many, ["ack", "reset"]))):
        await multiplex.send(op="subscribe", id=f"damaged {number}", cursor="nonsense", **message)
        frames = [frame for frame in await multiplex.receive_until(expected[-1]) if frame["type"] != "ping"]
        assert types(frames) == expected
        assert frames[1]["reason"] == "cursor_damaged"


async def test_a_refusal_does_not_affect_other_streams(
    multiplex: MultiplexClient, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    await multiplex.send(op="subscribe", id="good", dag_id="chat", run_id="run_0")
    await multiplex.receive_until("snapshot")
    refused: list[tuple[dict[str, Any] | str, int, str, str]] = [
        ({"op": "subscribe", "id": "x", "dag_id": "chat", "run_id": "missing"}, 404, "x", "no run 'missing'"),
        (
            {"op": "subscribe", "id": "x", "dag_id": "chat", "run_id": "run_0", "result": ["no"]},
            422,
            "x",
            "no task 'no'",
        ),
        ({"op": "subscribe", "id": "good", "dag_id": "chat", "run_id": "run_0"}, 409, "good", "choose another id"),
        ({"op": "subscribe", "id": "x", "dag_id": ["chat"], "run_id": "run_0"}, 422, "x", "`dag_id` must be a string"),
        ({"op": "subscribe", "id": "x", "run_id": [], "result": ["a"]}, 422, "x", "stream of one run"),
        ({"op": "subscribe", "id": "x", "dag_id": "chat", "run_id": "run_0", "tag": ["t"]}, 422, "x", "many runs"),
        ({"op": "subscribe", "id": "x", "type": ["result"]}, 422, "x", "one of task, run"),
        ({"op": "subscribe", "id": "x", "dag_id": ""}, 422, "x", "`dag_id` must not be empty"),
        ({"op": "subscribe", "id": "x", "dag_id": "chat", "until": "run"}, 422, "x", "for a stream of one run"),
        ({"op": "subscribe", "id": "", "dag_id": "chat"}, 422, "", "1 to 64 characters"),
        ({"op": "subscribe", "id": "x", "dog_id": "chat"}, 422, "x", "unknown field `dog_id`"),
        ({"op": "subscribe"}, 422, "", "missing required field `id`"),
        ({"op": "shout", "id": "x"}, 422, "x", "Invalid value 'shout'"),
        ({"op": "unsubscribe", "id": "missing"}, 422, "missing", "no stream 'missing'"),
        ("not json", 422, "", "Invalid message"),
        ("[1]", 422, "", "Invalid message"),
    ]
    for message, status, stream_id, detail in refused:
        await multiplex.connection.send(message if isinstance(message, str) else json.dumps(message))
        frame = await multiplex.receive()
        assert (frame["type"], frame["status"], frame["id"]) == ("error", status, stream_id), message
        assert detail in frame["detail"], message
        assert frame["problem"].startswith("urn:stream-server:problem:")
    await multiplex.connection.send(b'{"op":"ping","id":"still there"}')
    assert await multiplex.receive() == {"type": "ack", "op": "ping", "id": "still there"}
    await airflow.set_task(runs[0], "ask", "scheduled")
    assert (await multiplex.receive())["id"] == "good"


async def test_an_unsubscribed_stream_sends_nothing_more(
    multiplex: MultiplexClient, server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    for number in range(2):
        await multiplex.send(op="subscribe", id=f"s{number}", dag_id="chat", run_id=f"run_{number}")
        await multiplex.receive_until("snapshot")
    await multiplex.send(op="unsubscribe", id="s0")
    assert await multiplex.receive() == {"type": "ack", "op": "unsubscribe", "id": "s0"}
    assert server.hub.statistics()[:2] == (1, 1)
    for key in runs[:2]:
        await airflow.set_task(key, "ask", "scheduled")
    assert (await multiplex.receive())["id"] == "s1"


async def test_streams_of_a_connection_are_limited(
    settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with running_server(settings(max_subscriptions=2)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection:
            multiplex = MultiplexClient(connection)
            for number in range(3):
                await multiplex.send(op="subscribe", id=f"s{number}", dag_id=["chat"])
            frame = (await multiplex.receive_until("error"))[-1]
            assert (frame["id"], frame["status"], frame["title"]) == ("s2", 429, "Too many subscriptions")
        await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_a_stopping_server_sends_close_to_every_stream(
    settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        connection = await connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None)
        multiplex = MultiplexClient(connection)
        await multiplex.send(op="subscribe", id="one", dag_id="chat", run_id="run_0")
        await multiplex.send(op="subscribe", id="many", dag_id=["chat"])
        await multiplex.receive_until("snapshot")
        await eventually_async(lambda: server.hub.statistics().subscriptions == 2)
    closed = [frame for frame in await frames_of(connection) if frame["type"] == "close"]
    assert {frame["id"] for frame in closed} == {"one", "many"}
    assert {frame["code"] for frame in closed} == {4001} == {connection.close_code}


async def test_a_message_that_is_too_large_closes_with_1009(multiplex: MultiplexClient, runs: list[RunKey]) -> None:
    await multiplex.connection.send("x" * 70_000)
    assert await frames_of(multiplex.connection) == []
    assert multiplex.connection.close_code == 1009

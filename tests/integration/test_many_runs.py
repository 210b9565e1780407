"""Many runs on one connection: plain streams with a filter, and a WebSocket of many streams."""

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
from support.server import RunningServer, running_server
from support.streams import DEADLINE, Events, Frame, frames_of, sse, types
from support.waiting import eventually_async


@pytest.fixture
async def runs(airflow: AirflowSql, server: RunningServer) -> list[RunKey]:
    """Two runs of one DAG, and one of another, which bears a tag; that they began has been read."""
    keys = []
    for dag_id in ("chat", "report"):
        version = await airflow.add_dag(dag_id, CHAIN, {"clean_up": False})
        for number in range(2 if dag_id == "chat" else 1):
            keys.append(RunKey(dag_id, f"run_{number}"))
            await airflow.trigger(keys[-1], version, list(CHAIN))
    await airflow.connection.execute("INSERT INTO dag_tag (name, dag_id) VALUES ('nightly', 'report')")
    newest = await airflow.connection.fetchval("SELECT max(txid)::text::bigint FROM stream_server.journal")
    await eventually_async(
        lambda: server.hub.is_live and server.hub.cursor.is_visible(newest), what="the tail has read all that"
    )
    return keys


@asynccontextmanager
async def following(server: RunningServer, path: str, headers: dict[str, str] | None = None) -> AsyncIterator[Events]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=DEADLINE) as client,
        client.stream("GET", path, headers=headers) as response,
    ):
        yield Events(response)


async def tell_all(airflow: AirflowSql, runs: list[RunKey], state: str) -> None:
    for key in runs:
        await airflow.set_run(key, state)
        await airflow.set_task(key, "ask", "scheduled" if state == "queued" else state)


def places(frames: list[Frame]) -> list[tuple[str, str, str]]:
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
async def test_a_stream_tells_all_runs_that_its_filter_lets_through(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey], path: str, expected: list[tuple[str, str]]
) -> None:
    async with following(server, path) as events:
        assert (await events.next())["type"] == "ping"
        assert events.ids[-1] is not None, "from the first frame on there is a place to come back to"
        await tell_all(airflow, runs, "running")
        frames = [await events.next() for _ in range(2 * len(expected))]
    assert places(frames) == [(*place, kind) for place in expected for kind in ("run", "task")]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("?type=run", ["run"] * 3),
        ("?task_id=ask", ["task"] * 3),
        ("?type=task&state=running&dag_id=report", ["task"]),
        ("?state=running&run_id=run_1", ["run", "task"]),
    ],
)
async def test_types_states_and_tasks_are_filtered_too(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey], query: str, told: list[str]
) -> None:
    async with following(server, f"/api/v2/stream{query}") as events:
        await events.next()
        await tell_all(airflow, runs, "running")
        assert types([await events.next() for _ in told]) == told


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?type=result", "`type` must be one of task, run"),
        ("?state=runing", "`state` must be one of awaiting_input, deferred"),
        ("?dag_id=chat&dag_id=", "`dag_id` must not be empty"),
        ("?dag=chat", "no parameter 'dag' here"),
        ("?" + "&".join(["run_id=r"] * 101), "`run_id` must have at most 100 values, got 101"),
    ],
)
async def test_a_wrong_filter_is_told(server: RunningServer, runs: list[RunKey], query: str, said: str) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get(f"/api/v2/stream{query}")
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


async def test_a_tag_that_no_dag_bears_lets_nothing_through(
    server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with following(server, "/api/v2/stream?tag=nobody") as nothing, following(server, "/api/v2/stream") as events:
        await nothing.next()
        await events.next()
        await tell_all(airflow, runs, "running")
        for _ in range(6):
            await events.next()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(nothing.next(), 0.2)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_what_was_missed_is_told_to_who_comes_back(
    server: RunningServer, settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey], accept: str
) -> None:
    async with following(server, "/api/v2/dags/chat/stream") as events:
        await events.next()
        await airflow.set_run(runs[0], "running")
        await events.next()
        cursor = events.ids[-1]
    assert cursor is not None
    await tell_all(airflow, runs[1:], "running")
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
    # Where the other replica had not read so far yet, its place stands before what comes.
    assert [kind for kind in types(frames) if kind != "ping"] == ["resumed", "run", "task"]


async def test_damaged_and_expired_cursors_begin_anew(
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


class Talk:
    """A WebSocket of many streams."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, **operation: Any) -> None:
        await self.connection.send(json.dumps(operation))

    async def hear(self) -> Frame:
        frame: Frame = json.loads(await asyncio.wait_for(self.connection.recv(), DEADLINE))
        return frame

    async def hear_until(self, kind: str) -> list[Frame]:
        frames = [await self.hear()]
        while frames[-1]["type"] != kind:
            frames.append(await self.hear())
        return frames


@pytest.fixture
async def talk(server: RunningServer) -> AsyncIterator[Talk]:
    async with connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection:
        yield Talk(connection)


async def test_many_streams_share_a_connection(talk: Talk, airflow: AirflowSql, runs: list[RunKey]) -> None:
    chat, _, report = runs
    await talk.say(op="subscribe", id="c", dag_id=chat.dag_id, run_id=chat.run_id)
    assert await talk.hear() == {"type": "ack", "op": "subscribe", "id": "c"}
    snapshot = await talk.hear()
    assert (snapshot["type"], snapshot["id"], snapshot["run_id"]) == ("snapshot", "c", chat.run_id)
    assert next(iter(snapshot)) == "type"
    await talk.say(op="subscribe", id="r", dag_id=[report.dag_id])
    assert (await talk.hear_until("ack"))[-1]["id"] == "r"
    await airflow.run_task(report, "ask", 1)
    await airflow.run_task(chat, "answer", "yes")
    frames = await talk.hear_until("end")
    by_stream = {name: [one for one in frames if one["id"] == name] for name in "cr"}
    assert types(by_stream["c"])[-2:] == ["result", "end"]
    assert by_stream["c"][-2]["results"] == {"answer": "yes"}
    assert {one["dag_id"] for one in by_stream["r"] if one["type"] == "task"} == {"report"}
    await talk.say(op="subscribe", id="c", dag_id=chat.dag_id, run_id=chat.run_id, cursor=snapshot["cursor"])
    again = await talk.hear_until("end")
    assert {one["id"] for one in again} == {"c"}, "a name is free again when its stream has ended"
    assert types(again)[:2] == ["ack", "resumed"]


async def test_a_subscription_goes_on_where_another_connection_was(
    server: RunningServer, talk: Talk, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    key = runs[0]
    one: dict[str, Any] = {"dag_id": key.dag_id, "run_id": key.run_id}
    many: dict[str, Any] = {"dag_id": [key.dag_id]}
    async with sse(server.url, key) as run, following(server, "/api/v2/dags/chat/stream") as all_runs:
        await run.next()
        await all_runs.next()
        places = {"one": run.ids[-1], "many": all_runs.ids[-1]}
    await airflow.set_task(key, "ask", "scheduled")
    for name, asked in (("one", one), ("many", many)):
        await talk.say(op="subscribe", id=name, cursor=places[name], **asked)
        frames = [frame for frame in await talk.hear_until("task") if frame["type"] != "ping"]
        assert types(frames) == ["ack", "resumed", "task"]
        assert (frames[1]["since"], frames[2]["state"]) == (places[name], "scheduled")
        assert frames[2]["cursor"], "it can come back once more"
    for number, (asked, told) in enumerate(((one, ["ack", "reset", "snapshot"]), (many, ["ack", "reset"]))):
        await talk.say(op="subscribe", id=f"damaged {number}", cursor="nonsense", **asked)
        frames = [frame for frame in await talk.hear_until(told[-1]) if frame["type"] != "ping"]
        assert types(frames) == told
        assert frames[1]["reason"] == "cursor_damaged"


async def test_a_refusal_disturbs_nobody(talk: Talk, airflow: AirflowSql, runs: list[RunKey]) -> None:
    await talk.say(op="subscribe", id="good", dag_id="chat", run_id="run_0")
    await talk.hear_until("snapshot")
    refused: list[tuple[dict[str, Any] | str, int, str, str]] = [
        ({"op": "subscribe", "id": "x", "dag_id": "chat", "run_id": "nobody"}, 404, "x", "no run 'nobody'"),
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
        ({"op": "subscribe", "id": "x", "state": ["runing"]}, 422, "x", "one of awaiting_input"),
        ({"op": "subscribe", "id": "x", "dag_id": ""}, 422, "x", "`dag_id` must not be empty"),
        ({"op": "subscribe", "id": "x", "dag_id": "chat", "until": "run"}, 422, "x", "for a stream of one run"),
        ({"op": "subscribe", "id": "", "dag_id": "chat"}, 422, "", "1 to 64 characters"),
        ({"op": "subscribe", "id": "x", "dog_id": "chat"}, 422, "x", "unknown field `dog_id`"),
        ({"op": "subscribe"}, 422, "", "missing required field `id`"),
        ({"op": "shout", "id": "x"}, 422, "x", "Invalid value 'shout'"),
        ({"op": "unsubscribe", "id": "nobody"}, 422, "nobody", "no stream 'nobody'"),
        ("not json", 422, "", "Invalid message"),
        ("[1]", 422, "", "Invalid message"),
    ]
    for said, status, identity, detail in refused:
        await talk.connection.send(said if isinstance(said, str) else json.dumps(said))
        frame = await talk.hear()
        assert (frame["type"], frame["status"], frame["id"]) == ("error", status, identity), said
        assert detail in frame["detail"], said
        assert frame["problem"].startswith("urn:stream-server:problem:")
    await talk.connection.send(b'{"op":"ping","id":"still there"}')
    assert await talk.hear() == {"type": "ack", "op": "ping", "id": "still there"}
    await airflow.set_task(runs[0], "ask", "scheduled")
    assert (await talk.hear())["id"] == "good"


async def test_a_stream_that_was_ended_is_silent(
    talk: Talk, server: RunningServer, airflow: AirflowSql, runs: list[RunKey]
) -> None:
    for number in range(2):
        await talk.say(op="subscribe", id=f"s{number}", dag_id="chat", run_id=f"run_{number}")
        await talk.hear_until("snapshot")
    await talk.say(op="unsubscribe", id="s0")
    assert await talk.hear() == {"type": "ack", "op": "unsubscribe", "id": "s0"}
    assert server.hub.statistics()[:2] == (1, 1)
    for key in runs[:2]:
        await airflow.set_task(key, "ask", "scheduled")
    assert (await talk.hear())["id"] == "s1"


async def test_streams_of_a_connection_are_bounded(
    settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with running_server(settings(max_subscriptions=2)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None) as connection:
            talk = Talk(connection)
            for number in range(3):
                await talk.say(op="subscribe", id=f"s{number}", dag_id=["chat"])
            frame = (await talk.hear_until("error"))[-1]
            assert (frame["id"], frame["status"], frame["title"]) == ("s2", 429, "Too many subscriptions")
        await eventually_async(lambda: server.hub.statistics().subscriptions == 0)


async def test_a_server_that_stops_tells_every_stream_and_closes(
    settings: Callable[..., Settings], airflow: AirflowSql, runs: list[RunKey]
) -> None:
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        connection = await connect(server.url.replace("http", "ws", 1) + "/api/v2/stream", proxy=None)
        talk = Talk(connection)
        await talk.say(op="subscribe", id="one", dag_id="chat", run_id="run_0")
        await talk.say(op="subscribe", id="many", dag_id=["chat"])
        await talk.hear_until("snapshot")
        await eventually_async(lambda: server.hub.statistics().subscriptions == 2)
    closed = [frame for frame in await frames_of(connection) if frame["type"] == "close"]
    assert {frame["id"] for frame in closed} == {"one", "many"}
    assert {frame["code"] for frame in closed} == {4001} == {connection.close_code}


async def test_a_message_too_large_closes_with_the_code_of_the_protocol(talk: Talk, runs: list[RunKey]) -> None:
    await talk.connection.send("x" * 70_000)
    assert await frames_of(talk.connection) == []
    assert talk.connection.close_code == 1009

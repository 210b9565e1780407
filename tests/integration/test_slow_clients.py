"""Clients that read more slowly than their stream grows are closed at the bound, and resume without a loss."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from urllib.parse import urlsplit

from stream_server.domain.run_state import RunKey
from stream_server.journal.run_store import MAX_HISTORY
from stream_server.protocol.close_codes import CloseCode
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.server import RunningServer, running_server
from support.soak_connections import HttpStream
from support.streams import DEADLINE, Frame, sse, stream_path, types
from support.waiting import eventually_async

INSTANCES = 400
STATES = ("scheduled", "queued", "running", "deferred")
UNTIL_RUN = "?until=run"

CHANGE_ALL = (
    "UPDATE task_instance SET state = $3::text, try_number = try_number + 1"
    " WHERE dag_id = $1 AND run_id = $2 AND task_id = 'square' RETURNING pg_current_xact_id()::text::bigint"
)


async def mapped_run(airflow: AirflowSql) -> RunKey:
    """Trigger a run of a task with many instances; its id is long, so that its frames are large."""
    version = await airflow.add_dag("squares", {"square": []})
    key = RunKey("squares", f"manual__{'x' * 200}")
    await airflow.trigger(key, version, ["square"])
    await airflow.expand(key, version, "square", INSTANCES)
    return key


async def fall_behind(server: RunningServer, airflow: AirflowSql, key: RunKey) -> HttpStream:
    """Open a stream that is not read, and change tasks until it is closed as too slow."""
    port = urlsplit(server.url).port
    assert port is not None
    lines = await HttpStream.open(port, stream_path(key, UNTIL_RUN), cursor=None, slow=True)
    await eventually_async(lambda: server.hub.statistics().subscriptions == 1)
    (subscription,) = server.subscriptions()
    for state in itertools.islice(itertools.cycle(STATES), 100):
        txid = await airflow.connection.fetchval(CHANGE_ALL, *key, state)
        await eventually_async(
            lambda txid=txid: subscription.closed is not None or server.hub.cursor.is_visible(txid),  # type: ignore[misc]
            what="the change reaches the hub",
        )
        if subscription.closed is not None:
            break
    assert subscription.closed is not None
    assert subscription.closed.code == CloseCode.SLOW
    return lines


async def read_all(lines: HttpStream) -> list[Frame]:
    async def reading() -> list[Frame]:
        return [frame async for frame in lines.frames()]

    try:
        return await asyncio.wait_for(reading(), DEADLINE)
    finally:
        lines.disconnect("close")


async def numbers(airflow: AirflowSql, key: RunKey) -> dict[int, list[int]]:
    """Return the tries of each instance in the journal, in order."""
    rows = await airflow.connection.fetch(
        "SELECT map_index, try_number FROM stream_server.journal"
        " WHERE kind = 'task' AND dag_id = $1 AND run_id = $2 AND try_number > 0 ORDER BY id",
        *key,
    )
    return tries_in([{"type": "task", **row} for row in rows])


def tries_in(frames: list[Frame]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for frame in frames:
        if frame["type"] == "task":
            found.setdefault(frame["map_index"], []).append(frame["try_number"])
    return found


def last_cursor(frames: list[Frame]) -> str:
    cursor: str = [frame["cursor"] for frame in frames if frame["cursor"]][-1]
    return cursor


async def test_a_slow_client_resumes_with_every_missed_transition(
    settings: Callable[..., Settings], airflow: AirflowSql
) -> None:
    key = await mapped_run(airflow)
    async with running_server(settings(max_queued_bytes=2048)) as server:
        await eventually_async(lambda: server.hub.is_live)
        before = await read_all(await fall_behind(server, airflow, key))
        assert before[-1]["code"] == CloseCode.SLOW
        assert before[-1]["reconnect"]
        written = await numbers(airflow, key)
        async with sse(server.url, key, UNTIL_RUN, {"Last-Event-ID": last_cursor(before)}) as events:
            frames = [await events.next()]
            seen = {frame["seq"] for frame in before if frame["type"] == "task"}
            missing = sum(map(len, written.values())) - len(seen)
            assert missing > 0
            while missing:
                frames.append(await events.next())
                missing -= frames[-1]["seq"] not in seen
    assert frames[0]["type"] == "resumed"
    assert tries_in(before + [frame for frame in frames[1:] if frame["seq"] not in seen]) == written


async def test_a_client_that_missed_too_much_gets_the_newest_states(
    settings: Callable[..., Settings], airflow: AirflowSql
) -> None:
    key = await mapped_run(airflow)
    async with running_server(settings(max_queued_bytes=2048)) as server:
        await eventually_async(lambda: server.hub.is_live)
        before = await read_all(await fall_behind(server, airflow, key))
        for state in itertools.islice(itertools.cycle(STATES), MAX_HISTORY // INSTANCES + 1):
            await airflow.connection.execute(CHANGE_ALL, *key, state)
        async with sse(server.url, key, UNTIL_RUN, {"Last-Event-ID": last_cursor(before)}) as events:
            frames = [await events.next(), await events.next()]
    assert types(frames) == ["reset", "snapshot"]
    assert frames[0]["reason"] == "cursor_expired"
    # This many instances are counted, and not listed.
    assert frames[1]["counts"] == {"square": {state: INSTANCES}}

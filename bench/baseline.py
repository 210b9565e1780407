"""The baseline: a program that only receives notifications and reads the journal."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import asyncpg

from bench.recorder import RecorderLink
from stream_server.journal.listener import NOTIFY_CHANNEL
from stream_server.journal.queries import load_queries

# The minimum of the tail's query: the new rows, by the index on txid. Every row below
# the xmin of a snapshot that was read is known; a row above it may come twice, and counts the first time. The upper
# bound excludes no visible row, but with only a lower one the planner expects a third of the journal.
SELECT = (
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, try_number FROM stream_server.journal"
    " WHERE txid >= $1::text::xid8 AND txid < pg_snapshot_xmax(pg_current_snapshot())"
)

# An indexed SELECT, planned once, whatever the statistics of a new journal are.
SETTINGS = {"enable_seqscan": "off", "plan_cache_mode": "force_generic_plan"}


class Notification(NamedTuple):
    """A notification that was received."""

    at: float
    pid: int
    """The backend that committed it."""


class BaselineRecording(NamedTuple):
    """The recording of the baseline client."""

    notifications: list[Notification]
    seen: dict[int, float]
    """When each transition was first read, by its number."""


async def record_baseline(link: RecorderLink, database_url: str) -> None:
    """Listen on one connection, and read the journal on another at each notification.

    One LISTEN connection serves both figures, since every listening connection slows every commit of the database. The
    callback records the time first, so that reading does not affect the notification times. It is
    notified of each transaction, also while the server polls without notifications.
    """
    listening = await asyncpg.connect(database_url)
    reading = await asyncpg.connect(database_url, server_settings=SETTINGS)
    notifications: list[Notification] = []
    seen: dict[int, float] = {}
    wake_up = asyncio.Event()

    def on_notify(_connection: object, pid: int, _channel: str, _payload: object) -> None:
        notifications.append(Notification(time.monotonic(), pid))
        wake_up.set()

    async def read() -> None:
        select = await reading.prepare(SELECT)
        horizon: str = await reading.fetchval("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        while True:
            await wake_up.wait()
            wake_up.clear()
            rows = await select.fetch(horizon)
            now = time.monotonic()
            for horizon, number in rows:  # noqa: B007 # the same in every row
                seen.setdefault(number, now)

    reader = asyncio.create_task(read())
    try:
        await listening.add_listener(NOTIFY_CHANNEL, on_notify)
        assert await listening.fetchval(load_queries("notify.sql")["go_idle"]), "no other consumer takes the lock"
        await link.wait_for_end(lambda: len(seen))
        link.send(BaselineRecording(notifications, seen))
    finally:
        reader.cancel()
        listening.terminate()
        reading.terminate()

"""A journal under steady load with a short retention: nothing may grow, and nothing may be lost.

`python -m support.soak --minutes 10 [--retention 60s] [--retention-size 4MiB]`. It prints a line for each sample, and
its last line is JSON: figures and misses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from stream_server.cli.demo.server import StreamServerProcess, server_environment
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from support.airflow_sql import CHAIN, AirflowSql
from support.postgres import create_database_from_airflow_template, drop_database, running_postgres
from support.streams import Events, sse
from support.waiting import eventually_async

NO_AIRFLOW = "http://127.0.0.1:9"
"""No server listens there: streams make no request to Airflow's API."""

RATE = 200.0
"""Rows per second."""

WRITERS = 4
"""Runs under way at a time."""

WATCHED_SHARE = 10
"""One of this number of runs is watched."""

UPDATES = ("scheduled", "queued", "running", "deferred")
CLIENTS = 3
SAMPLE_SECONDS = 10.0
"""Interval of the samples; less in a short run, so that it has 20."""

GROWTH = 1.2
"""Greatest ratio of memory at the end to that after the first minutes."""


class Pacer:
    """Paces writers to a steady rate, however many there are."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = time.monotonic()
        self.rows = 0

    async def wait(self, rows: int) -> None:
        """Wait until `rows` more rows are due."""
        self._due = max(self._due + rows / self._rate, time.monotonic() - 1)
        self.rows += rows
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))


@dataclass
class Sample:
    """Measurements at a moment; sizes in KiB, times in milliseconds."""

    second: float
    table: float
    index: float
    live: int
    dead: int
    server: float
    """Its memory."""

    read: float
    """Mean duration of a read since the last sample."""

    lag: float
    """Mean time from the write of a row to its read."""


class Soak:
    """One workload, one server and its clients."""

    def __init__(self, url: str, server: StreamServerProcess) -> None:
        self._url = url
        self._server = server
        self._pacer = Pacer(RATE)
        self._before: dict[str, float] = {}
        self.samples: list[Sample] = []
        self.pulses = 0
        self.received: list[list[int]] = []
        self.misses: list[str] = []
        self.streams = 0

    async def run(self, seconds: float) -> None:
        """Write, watch and take samples for `seconds`."""
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            airflow = await stack.enter_async_context(AirflowSql.open(self._url))
            version = await airflow.add_dag("soak", CHAIN, {"clean_up": False})
            pulse = RunKey("soak", "pulse")
            await airflow.trigger(pulse, version, list(CHAIN))
            clients = []
            for _ in range(CLIENTS):
                events = await stack.enter_async_context(sse(self._server.url, pulse, "?until=run", timeout=60))
                await events.next()
                self.received.append([])
                clients.append(asyncio.create_task(self._follow(events, self.received[-1])))
            stop = asyncio.Event()
            writers = [asyncio.create_task(self._write_runs(number, version, stop)) for number in range(WRITERS)]
            writers.append(asyncio.create_task(self._update_run(airflow, pulse, stop)))
            sampler = asyncio.create_task(self._sample_until(began, seconds))
            ended, _ = await asyncio.wait([sampler, *writers, *clients], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            for task in ended:
                task.result()
            await asyncio.gather(*writers)
            await self._catch_up()
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        self.seconds = time.monotonic() - began

    async def _write_runs(self, number: int, version: Any, stop: asyncio.Event) -> None:
        """Bring one run after the other to its end, and delete it."""
        async with AirflowSql.open(self._url) as airflow:
            count = 0
            while not stop.is_set():
                count += 1
                key = RunKey("soak", f"manual__2026-11-22T10:00:00+00:00_{number}_{count}")
                await self._pacer.wait(1 + len(CHAIN))
                await airflow.trigger(key, version, list(CHAIN))
                if count % WATCHED_SHARE == 0:
                    async with sse(self._server.url, key, "?until=run", timeout=60) as events:
                        await events.next()
                        await self._run(airflow, key)
                        self._check_frames(key, await events.rest(30))
                else:
                    await self._run(airflow, key)
                await self._pacer.wait(1)
                await airflow.delete_run(key)

    async def _run(self, airflow: AirflowSql, key: RunKey) -> None:
        await self._pacer.wait(1)
        await airflow.set_run(key, "running")
        for task_id in CHAIN:
            for state in ("scheduled", "queued", "running"):
                await self._pacer.wait(1)
                await airflow.set_task(key, task_id, state)
            await self._pacer.wait(2)
            await airflow.push(key, task_id, {"text": "because"})
            await airflow.set_task(key, task_id, "success")
        await self._pacer.wait(1)
        await airflow.set_run(key, "success")

    def _check_frames(self, key: RunKey, frames: list[dict[str, Any]]) -> None:
        self.streams += 1
        tasks = [frame for frame in frames if frame["type"] == "task"]
        if len(tasks) != 4 * len(CHAIN) or frames[-1]["type"] != "end" or frames[-1]["outcome"] != "result":
            self.misses.append(f"{key.run_id}: {[frame['type'] for frame in frames]}")

    async def _update_run(self, airflow: AirflowSql, key: RunKey, stop: asyncio.Event) -> None:
        """Change the states of a permanent run."""
        while not stop.is_set():
            await self._pacer.wait(WRITERS)
            for _ in range(WRITERS):
                await airflow.set_task(key, "ask", UPDATES[self.pulses % len(UPDATES)])
                self.pulses += 1

    async def _follow(self, events: Events, received: list[int]) -> None:
        while True:
            frame = (await events.until("task"))[-1]
            received.append(frame["seq"])

    async def _catch_up(self) -> None:
        # The report contains what has not arrived by then.
        with suppress(AssertionError):
            await eventually_async(lambda: all(len(received) >= self.pulses for received in self.received))

    async def _sample_until(self, began: float, seconds: float) -> None:
        interval = min(SAMPLE_SECONDS, seconds / 20)
        async with AirflowSql.open(self._url) as session, httpx.AsyncClient(base_url=self._server.url) as client:
            while (second := time.monotonic() - began) < seconds:
                self.samples.append(await self._sample(second, session, client))
                print(" ".join(f"{name} {value:g}" for name, value in asdict(self.samples[-1]).items()), flush=True)  # noqa: T201
                await asyncio.sleep(interval - (time.monotonic() - began) % interval)

    async def _sample(self, second: float, session: AirflowSql, client: httpx.AsyncClient) -> Sample:
        row = await session.connection.fetchrow(
            "SELECT pg_table_size(relid) / 1024.0, pg_indexes_size(relid) / 1024.0, n_dead_tup,"
            " (SELECT count(*) FROM stream_server.journal)"
            " FROM pg_stat_all_tables WHERE relid = 'stream_server.journal'::regclass"
        )
        assert row is not None
        table, index, dead, live = row
        now = {
            sample.name: sample.value
            for family in text_string_to_metric_families((await client.get("/metrics")).text)
            for sample in family.samples
            if not sample.labels
        }
        means = [1000 * self._mean(now, name) for name in ("stream_server_read_duration", "stream_server_lag")]
        self._before = now
        memory = psutil.Process(self._server.child.pid).memory_info().rss / 1024
        return Sample(
            round(second), float(table), float(index), live, dead, round(memory), *(round(m, 3) for m in means)
        )

    def _mean(self, now: dict[str, float], name: str) -> float:
        total, count = (
            now[f"{name}_seconds_{part}"] - self._before.get(f"{name}_seconds_{part}", 0) for part in ("sum", "count")
        )
        return total / count if count else 0.0

    def report(self) -> dict[str, Any]:
        """Return the figures, and as misses what was wrong."""
        # Of ten minutes, these are the third to the fifth, and the last three.
        length = self.samples[-1].second
        early = [one for one in self.samples if 0.3 * length <= one.second <= 0.5 * length]
        late = [one for one in self.samples if one.second >= 0.7 * length]
        growth = {
            "size": _peak(late, "table", "index") / _peak(early, "table", "index"),
            "memory": _peak(late, "server") / _peak(early, "server"),
        }
        lost = max(self.pulses - len(set(received)) for received in self.received)
        doubled = max(len(received) - len(set(received)) for received in self.received)
        rate = self._pacer.rows / self.seconds
        misses = [*self.misses]
        misses += [f"the {what} grew by {ratio:.2f}" for what, ratio in growth.items() if ratio > GROWTH]
        misses += [f"{count} frames {what}" for what, count in (("lost", lost), ("doubled", doubled)) if count]
        if rate < 0.95 * RATE:
            misses.append(f"only {rate:.0f} rows/s could be written")
        return {
            "check": "soak",
            "seconds": round(self.seconds),
            "rows": self._pacer.rows,
            "rate": round(rate, 1),
            "streams": self.streams + len(self.received),
            "lost": lost,
            "doubled": doubled,
            "growth": {what: round(ratio, 3) for what, ratio in growth.items()},
            "early": _medians(early),
            "late": _medians(late),
            "misses": misses,
        }


def _peak(samples: Sequence[Sample], *names: str) -> float:
    return max(sum(float(getattr(one, name)) for name in names) for one in samples)


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    names = ("table", "index", "live", "dead", "server", "read", "lag")
    return {name: round(statistics.median(getattr(one, name) for one in samples), 2) for name in names}


async def soak(url: str, seconds: float, options: Sequence[str]) -> dict[str, Any]:
    """Run the soak on a database with the journal; return figures and misses."""
    with TemporaryDirectory() as logs:
        server = StreamServerProcess(
            "stream server",
            Path(logs),
            database_url=url,
            airflow_url=NO_AIRFLOW,
            options=("--auth", "none", *options),
            environment=server_environment(),
        )
        try:
            await asyncio.to_thread(server.start)
            one = Soak(url, server)
            await one.run(seconds)
            return one.report()
        finally:
            server.stop()


def main() -> int:
    """Run the soak. The exit status is 1 if there are misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--retention", default="1m")
    parser.add_argument("--retention-size", default="0")
    arguments = parser.parse_args()
    options = ("--retention", arguments.retention, "--retention-size", arguments.retention_size)
    with running_postgres() as postgres:
        database = create_database_from_airflow_template(postgres)
        url = postgres.url(database)
        try:
            asyncio.run(install_journal(url, "public", lock_timeout=5, attempts=1))
            report = asyncio.run(soak(url, 60 * arguments.minutes, options))
        finally:
            drop_database(postgres, database)
    print(json.dumps(report))  # noqa: T201
    return 1 if report["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Many writers, all kinds of faults, and tails and clients that must get every committed row exactly once.

As a script, for longer runs: `python -m support.lossless --seconds 120 [--seed SEED]`. Its last line is JSON: figures,
seed and misses.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stream_server.cli.demo.postgres import EmbeddedPostgres, StopMode
from stream_server.journal.installer import install_journal
from support.lossless_clients import Clients
from support.lossless_ledger import Evaluation, Ledger, ReaderLog, evaluate
from support.lossless_tails import ProcessTail, TaskTail, reconnect_quickly
from support.lossless_writers import (
    Workload,
    Writer,
    connect_when_possible,
    kill_backend,
    prepare_workload,
    read_journal,
)
from support.postgres import create_database_from_airflow_template, drop_database, running_postgres
from support.waiting import eventually_async

CLUSTER = {"max_prepared_transactions": "64", "deadlock_timeout": "100ms", "wal_writer_delay": "10s"}
"""Only commits flush the WAL: after a crash, the ids of transactions that were rolled back are reused."""

WRITERS = 12
CATCH_UP_SECONDS = 20.0
ROUNDS = 2
"""Number of times that each fault occurs at least."""


@dataclass
class ScheduleResult:
    """The result of a schedule."""

    seed: str
    evaluation: Evaluation
    figures: dict[str, Any]

    def as_json(self) -> str:
        return json.dumps({**self.figures, "seed": self.seed, "misses": self.evaluation.misses})


class FaultInjector:
    """Injects faults from a seed: each fault once in each round, in random order."""

    def __init__(self, postgres: EmbeddedPostgres, url: str, seed: str) -> None:
        self._postgres = postgres
        self._url = postgres.url(url.rpartition("/")[2], "postgres")
        self._random = random.Random(f"{seed}/saboteur")
        self.faults: Counter[str] = Counter()
        self.deck: dict[str, Callable[[], Awaitable[None]]] = {
            "terminate one of our backends": lambda: self._terminate(1),
            "terminate all of our backends": lambda: self._terminate(100),
            "kill -9 a backend": lambda: kill_backend(self._url),
            "restart PostgreSQL, fast": lambda: self._restart("fast"),
            "restart PostgreSQL, immediate": lambda: self._restart("immediate"),
            "restart PostgreSQL, kill -9": lambda: self._restart(None),
        }

    async def run(self, seconds: float) -> None:
        """Inject faults for `seconds`, and each fault at least `ROUNDS` times."""
        ends = time.monotonic() + seconds
        for number in itertools.count():
            if number >= ROUNDS and time.monotonic() > ends:
                return
            for fault in self._random.sample(sorted(self.deck), len(self.deck)):
                await asyncio.sleep(self._random.uniform(0.05, 1.0))
                await self.deck[fault]()
                self.faults[fault] += 1

    def add_process(self, tail: ProcessTail) -> None:
        async def pause() -> None:
            tail.pause()
            await asyncio.sleep(self._random.uniform(0.1, 1.0))
            tail.resume()

        self.deck["pause a tail"] = pause
        self.deck["kill -9 a tail"] = lambda: self._start_again(tail)

    def add_task(self, tail: TaskTail) -> None:
        self.deck["cancel a tail"] = lambda: self._start_again(tail)

    async def _start_again(self, tail: ProcessTail | TaskTail) -> None:
        tail.check()
        await tail.stop()
        await asyncio.sleep(self._random.uniform(0.0, 0.3))
        await tail.start()

    async def _restart(self, mode: StopMode | None) -> None:
        if mode is None:
            await asyncio.to_thread(self._postgres.kill)
        else:
            await asyncio.to_thread(self._postgres.stop, mode)
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.2, 1.0)))
        await asyncio.to_thread(self._postgres.start)

    async def _terminate(self, count: int) -> None:
        session = await connect_when_possible(self._url)
        try:
            pids = [
                row["pid"]
                for row in await session.fetch(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE application_name = 'stream_server' AND datname = current_database() ORDER BY pid"
                )
            ]
            for pid in self._random.sample(pids, min(count, len(pids))):
                await session.execute("SELECT pg_terminate_backend($1)", pid)
        finally:
            session.terminate()


async def run_tails(postgres: EmbeddedPostgres, url: str, seed: str, seconds: float) -> ScheduleResult:
    """Run a schedule in which tails follow the journal through all faults."""
    workload = await prepare_workload(url, runs=4, instances=60)
    cancelled, process = TaskTail(url, "cancelled tail"), ProcessTail(url, "tail in a process")
    tails: list[TaskTail | ProcessTail] = [
        TaskTail(url, "steady tail"),
        TaskTail(url, "tail that loses notifications", random.Random(f"{seed}/notifications")),
        cancelled,
        process,
    ]
    lines = [tail.line for tail in tails]
    injector = FaultInjector(postgres, url, seed)
    injector.add_task(cancelled)
    injector.add_process(process)

    def check() -> None:
        for tail in tails:
            tail.check()

    with reconnect_quickly():
        try:
            for tail in tails:
                await tail.start()
            await eventually_async(lambda: all(line.cursor for line in lines), 30, "every tail has begun")
            return await _run_schedule(url, workload, seed, seconds, injector, lines, check)
        finally:
            for tail in tails:
                await tail.stop()


async def run_clients(postgres: EmbeddedPostgres, url: str, seed: str, seconds: float) -> ScheduleResult:
    """Run a schedule in which clients watch runs through all faults of PostgreSQL."""
    workload = await prepare_workload(url, runs=4, instances=60)
    clients = Clients(url)
    try:
        await clients.start([*workload.runs, *workload.runs])
        before = clients.megabytes
        outcome = await _run_schedule(
            url, workload, seed, seconds, FaultInjector(postgres, url, seed), clients.lines, clients.check
        )
        outcome.figures["server's megabytes"] = [round(before, 1), round(clients.megabytes, 1)]
        return outcome
    finally:
        await clients.stop()


async def _run_schedule(
    url: str,
    workload: Workload,
    seed: str,
    seconds: float,
    injector: FaultInjector,
    lines: list[ReaderLog],
    check: Callable[[], None],
) -> ScheduleResult:
    """Write and inject faults, then wait for the readers, and evaluate.

    Args:
        check: Raises the error that ended a reader.
    """
    ledger = Ledger()
    began = time.monotonic()
    stop = asyncio.Event()
    writers = [
        asyncio.create_task(Writer(url, workload, ledger, f"writer_{number}", seed).run(stop))
        for number in range(WRITERS)
    ]
    try:
        fault_task = asyncio.create_task(injector.run(seconds))
        writers.append(fault_task)
        await asyncio.wait(writers, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*writers), 60 + seconds)
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    written = time.monotonic() - began
    journal = await read_journal(url, workload)
    # The evaluation reports what has not arrived by then.
    with suppress(AssertionError):
        await eventually_async(lambda: all(line.complete(journal) for line in lines), CATCH_UP_SECONDS)
    caught = time.monotonic() - began - written
    check()
    evaluation = evaluate(ledger, journal, lines)
    ends = Counter(one.fate.value for one in ledger.transactions)
    figures = {
        "rows": len(journal),
        "transactions": len(ledger.transactions),
        **ends,
        "committed out of order": ledger.out_of_order,
        **ledger.counts,
        "faults": {fault: injector.faults[fault] for fault in injector.deck},
        "rows read": {line.name: len(line.rows) for line in lines},
        "resyncs": {line.name: Counter(one.why for one in line.restarts) for line in lines if line.restarts},
        "rows excused by that": evaluation.excused,
        "seconds": round(written, 1),
        "seconds to catch up": round(caught, 2),
    }
    return ScheduleResult(seed, evaluation, figures)


SCHEDULES = {"tails": run_tails, "clients": run_clients}


async def _run_one(postgres: EmbeddedPostgres, name: str, seed: str, seconds: float) -> ScheduleResult:
    database = create_database_from_airflow_template(postgres)
    url = postgres.url(database)
    try:
        await install_journal(url, "public", lock_timeout=5, attempts=1)
        return await SCHEDULES[name](postgres, url, seed, seconds)
    finally:
        drop_database(postgres, database)


def main() -> int:
    """Run the schedules. The exit status is 1 if there are misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--only", choices=SCHEDULES, help="one of the schedules; by default each, half of the time")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(SCHEDULES)
    figures: dict[str, Any] = {"seed": arguments.seed}
    misses = []
    with running_postgres(CLUSTER) as postgres:
        for name in names:
            outcome = asyncio.run(_run_one(postgres, name, arguments.seed, arguments.seconds / len(names)))
            figures[name] = outcome.figures
            misses += [f"{name}: {miss}" for miss in outcome.evaluation.misses]
    print(json.dumps({**figures, "misses": misses}))  # noqa: T201
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())

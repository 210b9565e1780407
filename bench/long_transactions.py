"""The cost of other sessions' long transactions for reads of the journal: `make bench-long-transactions`.

In each round reads are timed twice: alone, and beside a session with an open transaction that has an id, and another
that keeps its snapshot. Before that, many rows are written and half of all deleted, which vacuum can't remove.
Each read is the tail's own, after one transaction with one row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import uvloop

from bench.testbed import raise_on_sigterm, running_testbed
from stream_server.journal.reader import JournalReader
from stream_server.journal.run_store import RunStore

QUIET, BESIDE = "in quiet", "beside long transactions"
TARGET_RATIO = 1.2
"""Greatest ratio of the duration of a read beside long transactions to that without."""

WRITE = (
    "INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, try_number, state, previous_state)"
    " VALUES ('task', 'a_dag_of_usual_name', 'manual__2026-11-22T10:00:00.123456+00:00', 'answer', -1, 1, 'running',"
    " 'queued')"
)


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    parser = argparse.ArgumentParser(prog="bench-long-transactions", description=__doc__)
    parser.add_argument("--reads", type=int, default=1000, help="reads of a measurement (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)d)")
    parser.add_argument("--rows", type=int, default=20_000, help="before each measurement (default: %(default)d)")
    options = parser.parse_args()
    # The server must neither read at the same time nor prune.
    with raise_on_sigterm(), running_testbed(poll_interval="1h", retention="0") as running:
        running.server.suspend()
        try:
            times = uvloop.run(_measure(running.database_url, options))
        finally:
            running.server.resume()
    print(json.dumps(_figures(times)))
    return 0


async def _measure(url: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    times: dict[str, list[list[float]]] = {QUIET: [], BESIDE: []}
    runs = RunStore(url, pool_size=1, max_result_bytes=0)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for name, found in times.items():
            async with AsyncExitStack() as stack:
                if name == BESIDE:
                    await stack.enter_async_context(_long_transactions(url))
                writer = await stack.enter_async_context(_session(url))
                await writer.execute(f"DO $$ BEGIN FOR n IN 1..{options.rows} LOOP {WRITE}; COMMIT; END LOOP; END $$")
                size = await writer.fetchval("SELECT 216 * count(*) / 2 FROM stream_server.journal")
                while await runs.prune_journal(None, 1000, size, onward=True):
                    pass
                if name == QUIET:
                    await writer.execute("VACUUM stream_server.journal")
                found.append(await _read(url, writer, options.reads))
    await runs.close()
    return times


async def _read(url: str, writer: asyncpg.Connection[asyncpg.Record], reads: int) -> list[float]:
    """Return the duration of reads in milliseconds."""
    found = []
    async with JournalReader.open(url) as reader:
        cursor = (await reader.read_head()).position
        for _ in range(reads):
            await writer.execute(WRITE)
            began = time.perf_counter()
            batch = await reader.read_after(cursor)
            found.append(1000 * (time.perf_counter() - began))
            cursor = batch.position
            assert len(batch.transitions) == 1
    return found


@asynccontextmanager
async def _session(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    session = await asyncpg.connect(url)
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def _long_transactions(url: str) -> AsyncIterator[None]:
    async with _session(url) as writer, _session(url) as reader:
        await writer.execute("BEGIN")
        await writer.execute("SELECT pg_current_xact_id()")
        await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT FROM stream_server.journal LIMIT 1")
        yield


def _figures(times: dict[str, list[list[float]]]) -> dict[str, object]:
    medians = {name: [statistics.median(one) for one in each] for name, each in times.items()}
    p99 = {name: [statistics.quantiles(one, n=100)[98] for one in each] for name, each in times.items()}
    ratio = statistics.median(b / q for b, q in zip(medians[BESIDE], medians[QUIET], strict=True))
    return {
        "benchmark": "held",
        "rounds": len(medians[QUIET]),
        "median_ms": {name: round(statistics.median(each), 3) for name, each in medians.items()},
        "p99_ms": {name: round(statistics.median(each), 3) for name, each in p99.items()},
        "ratio": round(ratio, 3),
        "ratio_of_rounds": [round(b / q, 3) for b, q in zip(medians[BESIDE], medians[QUIET], strict=True)],
        "misses": [f"a read takes {ratio:.2f} times as long, not {TARGET_RATIO}"] if ratio > TARGET_RATIO else [],
    }


if __name__ == "__main__":
    sys.exit(main())

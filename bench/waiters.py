"""The cost of calls that wait for a result, and how soon they return: `make bench-waiters`.

Each waits for a run of its own, at `…/result`, or with `--calls mcp` as a call of a tool at `/mcp`. While nothing
happens, pg_stat_statements counts the server's queries with one call, and with all: the difference is their cost. Then
the values of the runs are pushed one by one, each timed from just before its COMMIT is sent to the first byte of the
response, by one clock in one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlsplit

import asyncpg
import uvloop
from rich.console import Console
from typing_extensions import override

from bench.testbed import Testbed, raise_on_sigterm, running_testbed
from stream_server.cli.demo.postgres import SUPERUSER
from stream_server.cli.demo.template_cluster import ROLE
from stream_server.domain.run_state import RunKey
from stream_server.http.mcp.references import build_run_uri
from stream_server.http.mcp.tools import WAIT_TOOL
from support.airflow_sql import AirflowSql

TARGET_MS = 100.0
"""Milliseconds from the COMMIT to the answer, as a median."""

DEADLINE = 60.0


class WaitingCall(asyncio.Protocol):
    """One call, parsed by hand: a client library would add to the measured time."""

    def __init__(self, key: RunKey, host: str) -> None:
        self._request = self.build_request(key, host)
        self._received = b""
        self.answered = asyncio.get_running_loop().create_future()
        """Resolves to when the answer came, and the outcome with its values."""

    @staticmethod
    def build_request(key: RunKey, host: str) -> str:
        raise NotImplementedError

    @staticmethod
    def read_answer(received: bytes) -> tuple[str, Any] | None:
        """Return the outcome and its values; `None` if they have not come yet."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        cast("asyncio.Transport", transport).write(self._request.encode())

    def data_received(self, data: bytes) -> None:
        at = time.monotonic()
        self._received += data
        answer = None if self.answered.done() else self.read_answer(self._received)
        if answer is not None:
            self.answered.set_result((at, answer))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(exc or ConnectionError("The server has closed the connection"))


class ResultCall(WaitingCall):
    """A call of `…/result`."""

    @staticmethod
    @override
    def build_request(key: RunKey, host: str) -> str:
        return (
            f"GET /api/v2/dags/{key.dag_id}/dagRuns/{quote(key.run_id, safe='')}/result?timeout=10m HTTP/1.1\r\n"
            f"Host: {host}\r\n\r\n"
        )

    @staticmethod
    @override
    def read_answer(received: bytes) -> tuple[str, Any] | None:
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) != length:
            return None
        answer = json.loads(body)
        return answer["outcome"], answer.get("results")


class ToolCall(WaitingCall):
    """A call of the tool `wait_for_dag_run`, which waits as one of a DAG does, and needs no Airflow."""

    @staticmethod
    @override
    def build_request(key: RunKey, host: str) -> str:
        params = {"name": WAIT_TOOL, "arguments": {"run": build_run_uri(key)}}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        return (
            f"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )

    @staticmethod
    @override
    def read_answer(received: bytes) -> tuple[str, Any] | None:
        found = re.search(rb"data: (\{.*\})\n\n", received)
        if found is None:
            return None
        result = json.loads(found[1])["result"]
        value = result["content"][0]["text"]
        return ("error", value) if result.get("isError") else ("result", {"answer": int(value)})


CALLS: dict[str, type[WaitingCall]] = {"result": ResultCall, "mcp": ToolCall}


@dataclass(frozen=True)
class Figures:
    """The figures."""

    calls: str
    waiters: int
    idle_s: float
    queries_of_one: dict[str, int]
    """Count of each statement while one call waited."""

    queries_of_all: dict[str, int]
    milliseconds: list[float]
    wrong: int
    opening_cpu_s: float
    idle_cpu_s: float
    answering_cpu_s: float

    def misses(self) -> list[str]:
        """Return the missed targets as texts."""
        found = [f"{calls} more calls of: {query}" for query, calls in self.extra_queries().items()]
        if self.wrong:
            found.append(f"{self.wrong} wrong answers")
        if statistics.median(self.milliseconds) > TARGET_MS:
            found.append(f"the median answer took more than {TARGET_MS:g} ms")
        return found

    def extra_queries(self) -> dict[str, int]:
        """Return the queries of all calls beyond those of one. One poll may fall into either of two equal spans."""
        more = {query: calls - self.queries_of_one.get(query, 0) for query, calls in self.queries_of_all.items()}
        return {query: calls for query, calls in more.items() if calls > (query in self.queries_of_one)}

    def as_json(self) -> dict[str, Any]:
        ordered = sorted(self.milliseconds)
        return {
            "benchmark": "waiters",
            "calls": self.calls,
            "waiters": self.waiters,
            "idle_s": self.idle_s,
            "calls_of_one": sum(self.queries_of_one.values()),
            "calls_of_all": sum(self.queries_of_all.values()),
            "queries_of_waiters": sum(self.extra_queries().values()),
            "answer_ms": {
                "median": round(statistics.median(ordered), 2),
                "p99": round(ordered[round(0.99 * (len(ordered) - 1))], 2),
                "max": round(ordered[-1], 2),
            },
            "server_cpu_s": {
                "opening": round(self.opening_cpu_s, 2),
                "idle": round(self.idle_cpu_s, 2),
                "answering": round(self.answering_cpu_s, 2),
            },
            "misses": self.misses(),
        }


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    parser = argparse.ArgumentParser(prog="bench-waiters", description=__doc__)
    parser.add_argument("--waiters", type=int, default=500, help="(default: %(default)d)")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds of quiet (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=50.0, help="answers per second (default: %(default)g)")
    parser.add_argument("--calls", choices=CALLS, default="result", help="(default: %(default)s)")
    options = parser.parse_args()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    counting = {"shared_preload_libraries": "pg_stat_statements"}
    # Work at long intervals would fall into one of the spans and not into the other.
    # Only calls of a DAG's tool send requests to Airflow.
    settings = {"check_interval": "1h", "retention": "0", "mcp_wait": "10m", "airflow_url": "http://127.0.0.1:9"}
    with raise_on_sigterm(), running_testbed(counting, auth="none", **settings) as running:
        figures = uvloop.run(_measure(running, options.calls, options.waiters, options.idle, options.rate))
    console = Console(stderr=True)
    for miss in figures.misses():
        console.print(f"[bold red]missed:[/] {miss}", highlight=False)
    print(json.dumps(figures.as_json()))
    return 0


async def _measure(running: Testbed, calls: str, count: int, idle: float, rate: float) -> Figures:
    keys = [RunKey("waiters", f"run_{number:04}") for number in range(count)]
    counter = await asyncpg.connect(running.database_url.replace(f"//{ROLE}@", f"//{SUPERUSER}@"))
    try:
        async with AirflowSql.open(running.database_url) as airflow:
            await counter.execute("CREATE EXTENSION pg_stat_statements")
            await _add_runs(airflow, keys)
            first = await _open_calls(running, calls, keys[:1])
            await _wait_until_loaded(counter)
            queries_of_one = await _count_queries(counter, idle)
            used = [running.server_seconds()]
            waiters = first + await _open_calls(running, calls, keys[1:])
            await _wait_until_loaded(counter)
            used.append(running.server_seconds())
            queries_of_all = await _count_queries(counter, idle)
            used.append(running.server_seconds())
            committed = await _push_values(airflow, keys, rate)
            answers = await asyncio.wait_for(asyncio.gather(*(waiter.answered for waiter in waiters)), DEADLINE)
            used.append(running.server_seconds())
    finally:
        await counter.close()
    expected = [("result", {"answer": number}) for number in range(count)]
    return Figures(
        calls=calls,
        waiters=count,
        idle_s=idle,
        queries_of_one=queries_of_one,
        queries_of_all=queries_of_all,
        milliseconds=[1000 * (at - sent) for (at, _), sent in zip(answers, committed, strict=True)],
        wrong=sum(a != e for (_, a), e in zip(answers, expected, strict=True)),
        opening_cpu_s=used[1] - used[0],
        idle_cpu_s=used[2] - used[1],
        answering_cpu_s=used[3] - used[2],
    )


async def _add_runs(airflow: AirflowSql, keys: Sequence[RunKey]) -> None:
    version = await airflow.add_dag("waiters", {"answer": []})
    for key in keys:
        await airflow.trigger(key, version, ["answer"])
        await airflow.set_run(key, "running")
        await airflow.start_task(key, "answer")


async def _open_calls(running: Testbed, calls: str, keys: Sequence[RunKey]) -> list[WaitingCall]:
    """Open calls; return when the server serves all of them."""
    parts = urlsplit(running.server_url)
    assert parts.hostname is not None
    loop = asyncio.get_running_loop()
    waiters = [CALLS[calls](key, parts.netloc) for key in keys]
    for waiter in waiters:
        await loop.create_connection(lambda waiter=waiter: waiter, parts.hostname, parts.port or 80)  # type: ignore[misc]
    return waiters


async def _wait_until_loaded(counter: asyncpg.Connection[asyncpg.Record]) -> None:
    """Wait until the new calls have read their state."""
    before: dict[str, int] | None = None
    while (now := await _read_calls(counter)) != before:
        before = now
        await asyncio.sleep(0.5)


async def _count_queries(counter: asyncpg.Connection[asyncpg.Record], seconds: float) -> dict[str, int]:
    """Return how often each statement runs in `seconds`."""
    await counter.execute("SELECT pg_stat_statements_reset()")
    await asyncio.sleep(seconds)
    return await _read_calls(counter)


async def _read_calls(counter: asyncpg.Connection[asyncpg.Record]) -> dict[str, int]:
    """Return how often each statement of Airflow's role, which the server uses, has run."""
    rows = await counter.fetch(
        "SELECT query, sum(calls)::integer AS calls FROM pg_stat_statements AS s JOIN pg_roles AS r ON r.oid = s.userid"
        " WHERE r.rolname = $1 GROUP BY query",
        ROLE,
    )
    return {row["query"]: row["calls"] for row in rows}


async def _push_values(airflow: AirflowSql, keys: Sequence[RunKey], rate: float) -> list[float]:
    """Push a value for each run; return when each COMMIT was sent."""
    sent = []
    began = time.monotonic()
    for number, key in enumerate(keys):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.push(key, "answer", number)
        sent.append(time.monotonic())
        await transaction.commit()
    return sent


if __name__ == "__main__":
    sys.exit(main())

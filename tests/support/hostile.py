"""Some fifty hostile clients beside well-behaved streams, which must notice nothing.

`python -m support.hostile [--streams 1000] [--seconds 40] [--copies 2] [--workers 1]`. A server, a quiet phase, and a
phase with hostile clients of all kinds (`support.hostile_clients`), all on loopback. In both, transitions are written
at a steady rate, and the time from just before the commit to each client is measured. The last line is JSON: figures,
and as misses what was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from stream_server.cli.demo.ports import LOOPBACK, find_free_port
from stream_server.cli.demo.processes import ChildProcess, wait_until
from stream_server.cli.demo.progress import SilentReporter
from stream_server.cli.demo.server import server_environment
from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql
from support.hostile_clients import KINDS
from support.postgres import create_database_with_journal, drop_database, running_postgres
from support.soak_connections import CONNECTION_ERRORS, HttpStream, WebSocketStream
from support.streams import stream_path
from support.waiting import eventually_answered

TESTS = Path(__file__).resolve().parents[1]

DAG_ID = "pulse"
RUNS = 20
UPDATES_PER_SECOND = 20
"""Transitions per second, of one run after the other. Each goes to a twentieth of the streams."""

P99_SECONDS = 0.1
HEALTH_SECONDS = 0.1
MEMORY_FACTOR = 2.0
PROBE_SECONDS = 0.1
START_SECONDS = 60.0
UPDATE = "UPDATE task_instance SET state = $2, try_number = try_number + 1 WHERE id = $1 RETURNING try_number"


class Phase:
    """What was measured in a phase. Times are in seconds."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.health: list[float] = []
        self.memory = 0

    def figures(self) -> dict[str, float]:
        delays, health = sorted(self.delays), sorted(self.health)
        return {
            "frames": len(delays),
            "p50_ms": _milliseconds(statistics.median(delays)),
            "p99_ms": _milliseconds(_percentile(delays, 0.99)),
            "max_ms": _milliseconds(delays[-1]),
            "health_p99_ms": _milliseconds(_percentile(health, 0.99)),
            "health_max_ms": _milliseconds(health[-1]),
            "memory_mib": round(self.memory / 2**20, 1),
        }


class WellBehaved:
    """The streams that must notice nothing, and the transitions that they receive."""

    def __init__(self, url: str, port: int, streams: int) -> None:
        self._url, self._port, self._streams = url, port, streams
        self.runs = [RunKey(DAG_ID, f"manual__{number:02}") for number in range(RUNS)]
        self.phase = Phase()
        self.opened = 0
        self.cut: Counter[str] = Counter()
        self._written_at: dict[tuple[str, int], float] = {}

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[None]:
        """Open all streams; close them at the end."""
        async with AirflowSql.open(self._url) as airflow:
            version = await airflow.add_dag(DAG_ID, CHAIN, {"clean_up": False})
            for key in self.runs:
                await airflow.trigger(key, version, list(CHAIN))
        tasks = []
        for number, kind in zip(range(self._streams), itertools.cycle(("sse", "websocket", "ndjson")), strict=False):
            tasks.append(asyncio.create_task(self._read(self.runs[number % RUNS], kind)))
            # One after the other: benchmarks connect all at once.
            await asyncio.sleep(0.002)

        async def are_open() -> bool:
            return self.opened >= self._streams

        try:
            await eventually_answered(are_open, within=START_SECONDS, what="all streams are open")
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def write(self, seconds: float) -> None:
        """Write transitions at a steady rate."""
        async with AirflowSql.open(self._url) as airflow:
            found = await airflow.connection.fetch(
                "SELECT run_id, id, try_number FROM task_instance WHERE dag_id = $1 AND task_id = 'ask'", DAG_ID
            )
            numbers = {row["run_id"]: row["try_number"] for row in found}
            statement = await airflow.connection.prepare(UPDATE)
            began = time.monotonic()
            for count, row in enumerate(itertools.cycle(found)):
                pause = began + count / UPDATES_PER_SECOND - time.monotonic()
                if count / UPDATES_PER_SECOND > seconds:
                    return
                await asyncio.sleep(max(pause, 0))
                run_id = row["run_id"]
                numbers[run_id] += 1
                self._written_at[run_id, numbers[run_id]] = time.monotonic()
                await statement.fetchval(row["id"], ("running", "deferred")[count // len(found) % 2])

    async def _read(self, key: RunKey, kind: str) -> None:
        path = stream_path(key, "?until=run")
        stream: HttpStream | WebSocketStream | None = None
        try:
            if kind == "websocket":
                stream = await WebSocketStream.open(self._port, path)
            else:
                media_type = "application/x-ndjson" if kind == "ndjson" else "text/event-stream"
                stream = await HttpStream.open(self._port, path, media_type=media_type, cursor=None)
            async for frame in stream.frames():
                if frame["type"] == "snapshot":
                    self.opened += 1
                elif frame["type"] == "task":
                    # Before the commit: the delay contains the write.
                    written_at = self._written_at[frame["run_id"], frame["try_number"]]
                    self.phase.delays.append(time.monotonic() - written_at)
                elif frame["type"] != "ping":
                    self.cut[f"{kind}: {frame['type']}"] += 1
        except CONNECTION_ERRORS as error:
            self.cut[f"{kind}: {type(error).__name__}"] += 1
        finally:
            if stream is not None:
                stream.disconnect("close")


class ServerUnderAttack:
    """`stream-server serve` as a child process. It trusts loopback, so that each hostile client has an address."""

    def __init__(self, logs: Path, database_url: str, workers: int) -> None:
        self.port = find_free_port()
        settings = {
            "STREAM_SERVER_DATABASE_URL": database_url,
            "STREAM_SERVER_PORT": str(self.port),
            "STREAM_SERVER_WORKERS": str(workers),
            "STREAM_SERVER_TRUSTED_PROXIES": LOOPBACK,
            "STREAM_SERVER_MAX_JOINS_PER_SECOND": "20",
            "STREAM_SERVER_REQUEST_TIMEOUT": "3s",
        }
        self.log = logs / "server.log"
        command = [sys.executable, "-m", "stream_server", "serve"]
        self.child = ChildProcess("server", command, log=self.log, environment={**server_environment(), **settings})

    def start(self) -> None:
        self.child.start()
        wait_until(self._is_ready, within=START_SECONDS, waiting_for=self.child, progress=SilentReporter())

    def memory(self) -> int:
        """Return the resident memory of all its processes, in bytes."""
        total = 0
        parent = psutil.Process(self.child.pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://{LOOPBACK}:{self.port}/ready", timeout=5, trust_env=False).is_success
        return False


async def _probe(server: ServerUnderAttack, phase: Phase) -> None:
    """Measure `/health` and memory until cancelled."""
    async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{server.port}", timeout=30, trust_env=False) as client:
        while True:
            began = time.monotonic()
            # On a new connection, as probes of an orchestrator.
            await client.get("/health", headers={"Connection": "close"})
            phase.health.append(time.monotonic() - began)
            phase.memory = max(phase.memory, await asyncio.to_thread(server.memory))
            await asyncio.sleep(PROBE_SECONDS)


async def _run_phase(server: ServerUnderAttack, clients: WellBehaved, seconds: float) -> Phase:
    phase = clients.phase = Phase()
    probe = asyncio.create_task(_probe(server, phase))
    await clients.write(seconds)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    return phase


async def _attack(port: int, run: str, seconds: float, copies: int, only: Sequence[str]) -> dict[str, dict[str, int]]:
    """Run the hostile clients in a process of their own; return their counters by kind."""
    command = [sys.executable, "-m", "support.hostile_clients", str(port), run, str(seconds), str(copies), *only]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 2 * seconds + START_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    counters: dict[str, dict[str, int]] = json.loads(output.splitlines()[-1])
    return counters


async def attack_server(
    url: str,
    *,
    streams: int,
    seconds: float,
    copies: int,
    workers: int,
    keep_log: Path | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the check on a database with the journal; return figures and misses."""
    with TemporaryDirectory() as logs:
        server = ServerUnderAttack(keep_log or Path(logs), url, workers)
        try:
            await asyncio.to_thread(server.start)
            clients = WellBehaved(url, server.port, streams)
            async with clients.follow():
                quiet = await _run_phase(server, clients, seconds / 4)
                attack = asyncio.create_task(
                    _attack(server.port, stream_path(clients.runs[0], "?until=run"), seconds, copies, only)
                )
                attacked = await _run_phase(server, clients, seconds)
                answers = await attack
                cut = dict(clients.cut)
        finally:
            server.child.stop()
        log = server.log.read_text()
    return _report(quiet, attacked, answers, cut, log) | {"streams": streams, "seconds": seconds, "workers": workers}


def _report(
    quiet: Phase, attacked: Phase, answers: dict[str, dict[str, int]], cut: dict[str, int], log: str
) -> dict[str, Any]:
    before, after = quiet.figures(), attacked.figures()
    lines = log.splitlines()
    tracebacks = sum(line.startswith("Traceback") for line in lines)
    noise = Counter(" ".join(line.split()[2:])[:100] for line in lines if " WARNING " in line or " ERROR " in line)
    misses = [f"{count} well-behaved clients got {what}" for what, count in cut.items()]
    misses += [f"{kind} did nothing" for kind, totals in answers.items() if not totals.get("connections")]
    if after["p99_ms"] >= 1000 * P99_SECONDS:
        misses.append(f"p99 of frames was {after['p99_ms']} ms")
    if after["health_p99_ms"] >= 1000 * HEALTH_SECONDS:
        misses.append(f"p99 of /health was {after['health_p99_ms']} ms")
    if after["memory_mib"] >= MEMORY_FACTOR * before["memory_mib"]:
        misses.append(f"memory grew from {before['memory_mib']} to {after['memory_mib']} MiB")
    misses += [f"{tracebacks} tracebacks in the log"] if tracebacks else []
    misses += [f"{count} times in the log: {line}" for line, count in noise.items()]
    return {
        "check": "hostile",
        "hostile_clients": sum(1 for _ in answers) * _copies(answers),
        "quiet": before,
        "attacked": after,
        "tracebacks": tracebacks,
        "log_lines": len(lines),
        "sent_mib": round(sum(totals.get("sent", 0) for totals in answers.values()) / 2**20, 1),
        "connections": sum(totals.get("connections", 0) for totals in answers.values()),
        "answers": answers,
        "misses": misses,
    }


def _copies(answers: dict[str, dict[str, int]]) -> int:
    return max((totals.get("clients", 0) for totals in answers.values()), default=0)


def _percentile(values: list[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


def main() -> int:
    """Run the check. The exit status is 1 if there are misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--copies", type=int, default=-(-50 // len(KINDS)), help="Hostile clients of each kind.")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep-log", type=Path, help="Directory for the log of the server.")
    parser.add_argument("--only", nargs="*", default=(), choices=tuple(KINDS), help="Kinds of hostile clients.")
    arguments = parser.parse_args()
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    with running_postgres() as postgres:
        database = asyncio.run(create_database_with_journal(postgres))
        try:
            report = asyncio.run(attack_server(postgres.url(database), **vars(arguments)))
        finally:
            drop_database(postgres, database)
    print(json.dumps(report))  # noqa: T201
    return 1 if report["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Several processes that follow one journal: `make bench-workers`.

In turn: one server; as many servers as workers, which share nothing; one process that listens and notifies
independent readers; and one process that reads for all (`--workers`). For each: the cost of Airflow's changes at a
steady rate, in CPU time of PostgreSQL and of the servers, and their latency at clients of all of them; and how
many transactions eight writers commit at most. Finally, how the system distributes connections over workers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.journal import prepare
from bench.stream_clients import SseClient, use_client
from bench.testbed import raise_on_sigterm, running_database, running_server
from bench.writer import CONNECTIONS, Commit, add_run, write_transitions
from stream_server.cli.demo.postgres_install import PostgresInstallation
from stream_server.cli.demo.run_directory import RunDirectory
from stream_server.domain.run_state import RunKey

ONE, ALONE, ONE_LISTENER, RELAYED = (
    "one server",
    "servers that share nothing",
    "one listener, each reads",
    "one reads for all",
)
WRITERS = 8
CLIENTS = 16
STRAGGLER_SECONDS = 10.0


class Variant:
    """A set of processes that follow the journal."""

    def __init__(self, processes: list[psutil.Process], urls: list[str]) -> None:
        self.processes = processes
        self.urls = urls

    def seconds(self) -> float:
        """Return the CPU time that they have used."""
        every = {child for one in self.processes for child in [one, *one.children(recursive=True)]}
        return sum(times.user + times.system for times in (one.cpu_times() for one in every))


def main() -> int:
    """Run the benchmark."""
    options = _options()
    found: dict[str, defaultdict[str, list[float]]] = {
        name: defaultdict(list) for name in (ONE, ALONE, ONE_LISTENER, RELAYED)
    }
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with raise_on_sigterm(), running_database() as (url, directory), TemporaryDirectory() as folder:
        script = Path(folder, "script.sql")
        script.write_text(uvloop.run(prepare(url, WRITERS))["transition"])
        postmaster = _postmaster(url)
        for number in range(1, options.rounds + 1):
            for name, figures in found.items():
                print(f"round {number} of {options.rounds}: {name}", file=sys.stderr, flush=True)
                with _variant(name, url, directory, options.workers) as variant:
                    key = RunKey(f"round_{number}", name)
                    for figure, value in _steady(url, key, variant, postmaster, options).items():
                        figures[figure].append(value)
                    figures["commits_per_s"].append(_max_rate(url, script, options.seconds))
        spread = _connections_per_worker(url, directory, options)
    medians = {name: {what: statistics.median(each) for what, each in one.items()} for name, one in found.items()}
    _show(medians)
    print(json.dumps({"benchmark": "workers", **vars(options), "figures": medians, "spread": spread, "misses": []}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-workers", description=__doc__)
    parser.add_argument("--workers", type=int, default=4, help="(default: %(default)d)")
    parser.add_argument("--rate", type=float, default=50.0, help="changes a second (default: %(default)g)")
    parser.add_argument("--seconds", type=int, default=6, help="length of a measurement (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    parser.add_argument("--connections", type=int, default=1000, help="to be spread (default: %(default)d)")
    return parser.parse_args()


@contextmanager
def _variant(name: str, url: str, directory: RunDirectory, workers: int) -> Iterator[Variant]:
    with ExitStack() as stack:
        if name == ONE_LISTENER:
            yield stack.enter_context(_notifying_readers(url, workers))
            return
        options = ("--workers", str(workers)) if name == RELAYED else ()
        started = [
            stack.enter_context(running_server(url, directory, *options, check_interval="1h"))
            for _ in range(workers if name == ALONE else 1)
        ]
        yield Variant([psutil.Process(one.child.pid) for one in started], [one.url for one in started])


@contextmanager
def _notifying_readers(url: str, workers: int) -> Iterator[Variant]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    command = [sys.executable, "-m", "bench.notified_readers", url, str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        found = psutil.Process(process.pid)
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the tail has not started"
            yield Variant([found], [])
        finally:
            for one in [*found.children(recursive=True), found]:
                one.terminate()


def _steady(
    url: str, key: RunKey, variant: Variant, postmaster: psutil.Process, options: argparse.Namespace
) -> dict[str, float]:
    """Write at a steady rate; return the cost and the latencies."""
    instances = uvloop.run(add_run(url, key))
    count = CONNECTIONS + int(options.seconds * options.rate)
    writing = partial(write_transitions, url, instances, first=1, rate=options.rate, count=count)
    database_used, used = _database_seconds(postmaster), variant.seconds()
    latencies = uvloop.run(_measure_delivery(key, variant.urls, writing, count))
    return {
        "database_us_per_change": 1e6 * (_database_seconds(postmaster) - database_used) / count,
        "servers_us_per_change": 1e6 * (variant.seconds() - used) / count,
        # Readers without clients have no latencies.
        **_latency_figures(latencies),
    }


def _latency_figures(latencies: list[float]) -> dict[str, float]:
    if not latencies:
        return {}
    return {"p50_ms": statistics.median(latencies), "p99_ms": statistics.quantiles(latencies, n=100)[98]}


async def _measure_delivery(
    key: RunKey, urls: list[str], writing: Callable[[], Awaitable[list[Commit]]], count: int
) -> list[float]:
    """Write while clients watch; return the milliseconds from sending each change to each client."""
    path = f"/api/v2/dags/{key.dag_id}/dagRuns/{quote(key.run_id, safe='')}/stream?until=run"
    loop, clients = asyncio.get_running_loop(), []
    for number in range(CLIENTS if urls else 0):
        address = urls[number % len(urls)]
        client = SseClient(address + path)
        await loop.create_connection(partial(use_client, client), "127.0.0.1", int(address.rpartition(":")[2]))
        await client.opened
        clients.append(client)
    commits = {one.number: one.sent for one in await writing()}
    deadline = loop.time() + STRAGGLER_SECONDS
    while any(len(one.received().deliveries) < count for one in clients):
        assert loop.time() < deadline, "a change was lost"
        await asyncio.sleep(0.2)
    return [1000 * (one.at - commits[one.number]) for client in clients for one in client.received().deliveries]


def _max_rate(url: str, script: Path, seconds: int) -> float:
    """Return the transactions per second that pgbench commits."""
    done = subprocess.run(
        [
            *(PostgresInstallation.find().program_path("pgbench"), "--no-vacuum", "--protocol=prepared"),
            *(f"--client={WRITERS}", "--jobs=1", f"--time={seconds}", f"--file={script}", url),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return float(found[1])


def _postmaster(url: str) -> psutil.Process:
    port = int(url.rsplit(":", 1)[1].partition("/")[0])
    for one in psutil.net_connections("tcp4"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid is not None:
            return psutil.Process(one.pid)
    raise LookupError(f"No process listens on port {port}")


def _database_seconds(postmaster: psutil.Process) -> float:
    """Return the CPU time of all sessions, including the writers."""
    total = 0.0
    for child in postmaster.children():
        # A vacuum worker may end at this moment.
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def _connections_per_worker(url: str, directory: RunDirectory, options: argparse.Namespace) -> list[int]:
    """Return how many connections each worker accepts."""
    with running_server(url, directory, "--workers", str(options.workers)) as started:
        return uvloop.run(_accepted(psutil.Process(started.child.pid), started.port, options.connections))


async def _accepted(parent: psutil.Process, port: int, connections: int) -> list[int]:
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + STRAGGLER_SECONDS
    counts: list[int] = []
    while sum(counts) < connections:
        assert loop.time() < deadline, "a connection was not accepted"
        counts = sorted(_established(worker) for worker in parent.children())
        await asyncio.sleep(0.1)
    for _, writer in streams:
        writer.close()
    return counts


def _established(worker: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED for one in worker.net_connections("tcp4"))


def _show(medians: dict[str, dict[str, float]]) -> None:
    columns = ("database_us_per_change", "servers_us_per_change", "p50_ms", "p99_ms", "commits_per_s")
    table = Table(title="Several processes that follow one journal", title_justify="left")
    for column in ("", *columns):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, figures in medians.items():
        table.add_row(name, *(f"{figures[column]:.1f}" if column in figures else "" for column in columns))
    Console(width=max(120, Console().width)).print(table)


if __name__ == "__main__":
    sys.exit(main())

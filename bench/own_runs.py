"""A run of its own for each client: `make bench-own-runs`.

Each SSE client watches its own run, and a transition of one run after the other is committed at a steady rate. The
server has the first core; PostgreSQL, the writer and the clients have the others. Latencies are from the commit, as the
writer learns of it, to the frame at the client. A second, short load shows which stages take the CPU time of the
server, and how much of each latency is its own: measuring has a cost, so only the shares are from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import psutil
import uvloop
from rich.console import Console

from bench.bulk_rows import Instance, add_instances, add_runs, read_instance_ids
from bench.fanout import Generator, percentile
from bench.fanout_candidates import STREAM, cpu_seconds
from bench.fanout_clients import Endpoint, ReadResult
from bench.fanout_payload import DAG_ID, run_id
from bench.own_runs_server import FILE_VARIABLE, STAGES
from bench.recorder import BenchmarkError
from bench.testbed import NO_AIRFLOW, raise_on_sigterm, running_database
from bench.writer import CONNECTIONS, Commit, write_transitions
from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.processes import ChildProcess
from stream_server.cli.demo.run_directory import RunDirectory
from stream_server.cli.demo.server import StreamServerProcess, server_environment
from stream_server.settings import ENV_PREFIX
from support.airflow_sql import AirflowSql

TARGET_P99_MS = 15.0
TARGET_CPU_US = 150.0
"""Of the server for each transition."""

RATE_KEPT = 0.95
WARM_UP_SECONDS = 1.0
FILE_SECONDS = 10.0
CONNECT_SECONDS = 600.0
TASK = "part_00"
NO_LIMIT = "1000000"
LIMITS = ("max_connections", "max_connections_per_address", "max_streams_per_caller", "max_joins_per_second")
"""Settings that a single client address would exceed."""


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    options = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    first, *others = sorted(os.sched_getaffinity(0))
    # Child processes inherit it: PostgreSQL, the writer and the clients.
    os.sched_setaffinity(0, others)
    with raise_on_sigterm():
        try:
            with running_database() as (url, directory):
                print(f"writing {options.clients} runs", file=sys.stderr, flush=True)
                instances = uvloop.run(_add_runs(url, options.clients))
                with _running_server(url, directory, first) as server:
                    figures = _measure(url, server, directory, instances, options, core=others[-1])
        except (BenchmarkError, DemoError, psutil.Error, OSError, asyncpg.PostgresError) as error:
            print(f"The benchmark broke: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    for miss in figures["misses"]:
        Console(stderr=True).print(f"[bold red]missed:[/] {miss}", highlight=False)
    print(json.dumps(figures))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-own-runs", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000, help="(default: %(default)d)")
    parser.add_argument("--rate", type=float, default=1000.0, help="transitions per second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the load (default: %(default)g)")
    parser.add_argument("--profile", type=float, default=3.0, help="that of the second load (default: %(default)g)")
    options = parser.parse_args()
    if min(options.clients, options.rate, options.seconds, options.profile) <= 0:
        parser.error("all numbers must be positive")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for all others")
    return options


async def _add_runs(url: str, count: int) -> list[UUID]:
    """Write the runs of all clients; return their task instances, in the order of the runs."""
    async with AirflowSql.open(url) as airflow:
        version = await airflow.add_dag(DAG_ID, {TASK: ["answer"], "answer": []})
        runs = [run_id(number) for number in range(count)]
        await add_runs(airflow, DAG_ID, runs, version)
        await add_instances(airflow, DAG_ID, runs, version, [Instance(TASK, state="running"), Instance("answer")])
        await airflow.connection.execute("ANALYZE dag_run")
        await airflow.connection.execute("ANALYZE task_instance")
        return await read_instance_ids(airflow, DAG_ID, TASK)


@contextmanager
def _running_server(url: str, directory: RunDirectory, core: int) -> Iterator[StreamServerProcess]:
    """Run the server of `bench.own_runs_server`, on one core."""
    server = StreamServerProcess(
        "stream server", directory.logs, database_url=url, airflow_url=NO_AIRFLOW, options=("--auth", "none")
    )
    root = str(Path(__file__).resolve().parents[1])
    python, module, _, *command = server.child.command
    server.child = ChildProcess(
        "stream server",
        [python, module, "bench.own_runs_server", *command],
        log=server.child.log,
        environment={
            **server_environment(),
            **{f"{ENV_PREFIX}{name.upper()}": NO_LIMIT for name in LIMITS},
            "PYTHONPATH": root,
            FILE_VARIABLE: str(_record_file(directory)),
        },
    )
    try:
        server.start()
        for thread in psutil.Process(server.child.pid).threads():
            os.sched_setaffinity(thread.id, [core])
        yield server
    finally:
        server.stop()


def _record_file(directory: RunDirectory) -> Path:
    return directory.logs / "record.json"


def _measure(
    url: str,
    server: StreamServerProcess,
    directory: RunDirectory,
    instances: list[UUID],
    options: argparse.Namespace,
    *,
    core: int,
) -> dict[str, Any]:
    port = urlsplit(server.url).port
    assert port is not None, "it was chosen"
    clients = len(instances)
    generator = Generator(core)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as writer:
            generator.request("target", Endpoint(port, STREAM, websocket=False, opened=b"snapshot", feed_port=port))
            print(f"connecting {clients} clients", file=sys.stderr, flush=True)
            seconds = generator.request("connect", clients, clients, within=CONNECT_SECONDS)
            load = _Load(url, server.child.pid, generator, writer, instances)
            print(f"{options.rate:g} transitions/s", file=sys.stderr, flush=True)
            figures, _ = load.run(options.rate, options.seconds)
            print("the same, measured within the server", file=sys.stderr, flush=True)
            profiled, acked = load.run(options.rate, options.profile, is_recorded=True)
            record = _read_record(_record_file(directory))
    finally:
        generator.close()
    stages = record["stages"]
    used = sum(stages.values())
    figures |= {"connects_per_s": round(clients / seconds)}
    return {
        "benchmark": "own-runs",
        "clients": clients,
        "rate": options.rate,
        **figures,
        "stages": {stage: round(stages[stage] / used, 3) for stage in STAGES},
        "stages_us_per_transition": {
            stage: round(stages[stage] / used * figures["server_us_per_transition"], 1) for stage in STAGES
        },
        "latency_ms": {**_split_latencies(record, acked), "p50": profiled["p50_ms"], "p99": profiled["p99_ms"]},
        "misses": _misses(figures, options.rate),
    }


def _split_latencies(record: dict[str, Any], acked: dict[int, float]) -> dict[str, float]:
    """Return parts of the latencies in milliseconds: from the commit up to the read, and up to the write."""
    parts: dict[str, float] = {}
    for moment in ("read", "written"):
        at = {int(number): value for number, value in record[moment].items()}
        delays = sorted(1000 * (at[number] - acked[number]) for number in acked if number in at)
        parts |= {f"{moment}_p50": percentile(delays, 0.5), f"{moment}_p99": percentile(delays, 0.99)}
    reads = sorted(1000 * took for took, _ in record["reads"])
    parts |= {
        "query_p50": percentile(reads, 0.5),
        "query_p99": percentile(reads, 0.99),
        "longest_collection": 1000 * max([0.0, *record["collections"]]),
        "waited_for_core": 1000 * record["waited_for_core"],
        "transitions_per_read": statistics.mean(count for _, count in record["reads"]),
    }
    return {name: round(value, 2) for name, value in parts.items()}


class _Load:
    """Loads of the same clients, one after the other.

    Args:
        url: The database.
        server: Process id of the server.
        generator: The clients.
        writer: A process that writes.
        instances: A task instance of each client's run.
    """

    def __init__(
        self, url: str, server: int, generator: Generator, writer: ProcessPoolExecutor, instances: list[UUID]
    ) -> None:
        self._url, self._server = url, server
        self._generator, self._writer, self._instances = generator, writer, instances
        self._first = 0

    def run(self, rate: float, seconds: float, *, is_recorded: bool = False) -> tuple[dict[str, Any], dict[int, float]]:
        """Write transitions; return the figures of what the clients read, and when each commit was acknowledged.

        Args:
            rate: Transitions per second.
            seconds: Length of the load.
            is_recorded: Whether the server measures itself meanwhile.
        """
        warm_up = CONNECTIONS + round(rate * WARM_UP_SECONDS)
        count = warm_up + max(2, round(rate * seconds))
        # The generator finds the client of a transition in its number, modulo the number of clients.
        clients = len(self._instances)
        self._first = first = self._first + (-self._first % clients or clients)
        self._first += count
        commits, used = self._writer.submit(
            _write,
            self._url,
            self._server,
            self._instances,
            first=first,
            rate=rate,
            count=count,
            is_recorded=is_recorded,
        ).result()
        sent = {commit.number: commit.acked for commit in commits}
        read: ReadResult = self._generator.request("collect", sent, clients, 0.0, first + warm_up - 1)
        figures = {
            "p50_ms": round(percentile(read.latencies, 0.5), 2),
            "p99_ms": round(percentile(read.latencies, 0.99), 2),
            "max_ms": round(read.latencies[-1], 2),
            "commit_p50_ms": round(1000 * statistics.median(commit.acked - commit.sent for commit in commits), 2),
            "server_us_per_transition": round(1e6 * used / count, 1),
            "rate_kept": round((count - CONNECTIONS) / (commits[-1].sent - commits[CONNECTIONS - 1].sent), 1),
            "expected": read.expected,
            "lost": read.lost,
            "doubled": read.doubled,
        }
        return figures, {number: at for number, at in sent.items() if number >= first + warm_up}


def _write(
    url: str, server: int, instances: Sequence[UUID], *, first: int, rate: float, count: int, is_recorded: bool
) -> tuple[list[Commit], float]:
    """Write transitions; return them, and the seconds of the server's CPU meanwhile. Called in the writer's process."""
    if is_recorded:
        os.kill(server, signal.SIGUSR1)
    before = cpu_seconds(server)
    commits = uvloop.run(write_transitions(url, list(instances), first=first, rate=rate, count=count))
    used = cpu_seconds(server) - before
    if is_recorded:
        os.kill(server, signal.SIGUSR2)
    return commits, used


def _read_record(path: Path) -> dict[str, Any]:
    deadline = time.monotonic() + FILE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise BenchmarkError("The server has not written what it has measured")
        time.sleep(0.05)
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _misses(figures: dict[str, Any], rate: float) -> list[str]:
    misses = [f"{figures[what]} frames {what}" for what in ("lost", "doubled") if figures[what]]
    if figures["rate_kept"] < RATE_KEPT * rate:
        misses.append(f"only {figures['rate_kept']:.0f} of {rate:g} transitions/s could be written")
    if figures["p99_ms"] > TARGET_P99_MS:
        misses.append(f"p99 is {figures['p99_ms']:.1f} ms; the target is {TARGET_P99_MS:g}")
    if figures["server_us_per_transition"] > TARGET_CPU_US:
        used = figures["server_us_per_transition"]
        misses.append(f"{used:.0f} µs of CPU for each transition; the target is {TARGET_CPU_US:g}")
    return misses


if __name__ == "__main__":
    sys.exit(main())

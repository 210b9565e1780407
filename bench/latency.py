"""Commit to frame on the wire, beside the baseline of PostgreSQL, for the same commits.

Each transition has five times, all from just before the writer sends its UPDATE: the commit's
acknowledgement, a bare LISTEN callback, the row of a bare SELECT after that callback, and the frame at a client
over SSE and over WebSocket. The writer, the bare clients and the streams' clients are processes of their own beside the
server and PostgreSQL, and share the machine's cores with them, which affects all figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from urllib.parse import quote

import asyncpg
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.baseline import record_baseline
from bench.figures import COMMIT, FLOOR, SELECTED, STREAMS, TARGET_RATIO, Figures, Round, evaluate_round
from bench.recorder import BenchmarkError, running_recorder
from bench.stream_clients import record_streams
from bench.testbed import Testbed, raise_on_sigterm, running_testbed
from bench.writer import CONNECTIONS, add_run, read_journal, write_transitions
from stream_server.cli.demo.errors import DemoError
from stream_server.domain.run_state import RunKey


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    arguments = _arguments()
    rounds = []
    with raise_on_sigterm():
        try:
            with running_testbed() as running:
                if arguments.pin:
                    _pin(running.server.pid, first=True)
                    _pin(os.getpid(), first=False)
                for number in range(1, arguments.rounds + 1):
                    print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
                    rounds.append(_round(running, number, arguments))
        except (BenchmarkError, DemoError, psutil.Error, OSError, asyncpg.PostgresError) as error:
            print(f"The benchmark broke: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    figures = Figures(rounds, arguments.rate)
    _show(figures)
    print(json.dumps(figures.as_json()))
    return 0


def _round(running: Testbed, number: int, arguments: argparse.Namespace) -> Round:
    """Write and watch one run."""
    key = RunKey(f"latency_{number}", "manual__2026-01-01T00:00:00+00:00")
    # Until the end of the run, so that no answer ends the stream.
    url = f"{running.server_url}/api/v2/dags/{key.dag_id}/dagRuns/{quote(key.run_id, safe='')}/stream?until=run"
    instances = uvloop.run(add_run(running.database_url, key))
    warm_up = CONNECTIONS + int(arguments.warm_up * arguments.rate)
    count = warm_up + int(arguments.seconds * arguments.rate)
    with (
        running_recorder("bare clients", record_baseline, running.database_url) as bare,
        running_recorder("streams' clients", record_streams, url) as streams,
    ):
        for one in (bare, streams):
            one.wait_until_ready()
        used_before = running.server_seconds()
        with _no_collection():
            commits = uvloop.run(
                write_transitions(running.database_url, instances, first=1, rate=arguments.rate, count=count)
            )
        # The slowest clients wait for the last frame, so the server has done all its work by then.
        received = streams.collect(len(commits))
        used = running.server_seconds() - used_before
        baseline = bare.collect(len(commits))
    written = asyncio.run(read_journal(running.database_url, key))
    return evaluate_round(commits, written, baseline, received, warm_up=warm_up, server_seconds=used)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # A garbage-collection pause here would count as the server's.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _pin(pid: int, *, first: bool) -> None:
    process = psutil.Process(pid)
    cores = process.cpu_affinity()
    process.cpu_affinity([cores[0] if first else cores[-1]])


def _show(figures: Figures) -> None:
    table = Table(title="Milliseconds from the writer's UPDATE; medians of all rounds", title_justify="left")
    for column in ("", "median", "p99", "times floor + SELECT", "medians of the rounds"):
        table.add_column(column, justify="left" if not column else "right")
    for name in (COMMIT, FLOOR, SELECTED, *STREAMS):
        latency = figures.latency(name)
        table.add_row(
            name,
            f"{latency.median:.2f}",
            f"{latency.p99:.2f}",
            f"{figures.ratio(name):.2f}",
            " ".join(f"{one.latencies[name].median:.2f}" for one in figures.rounds),
        )
    console = Console(width=max(110, Console().width))
    console.print(table)
    parts = ", ".join(f"{name} {figures.server_part(name):.2f} ms" for name in STREAMS)
    console.print(f"Beyond floor + SELECT of the same commit, median: {parts}", highlight=False)
    console.print(
        f"{figures.total('written')} transitions at {figures.rate:.0f}/s, {figures.total('notifications')} notified:"
        f" {figures.total('lost')} lost, {figures.total('doubled')} doubled, {figures.total('disordered')} out of"
        f" order at the clients. Server CPU {figures.server_cpu_us:.0f} µs per transition.",
        highlight=False,
    )
    misses = figures.misses()
    for miss in misses:
        console.print(f"[bold red]missed:[/] {miss}", highlight=False)
    if not misses:
        console.print(
            f"The target is met: the median of a frame within {TARGET_RATIO:g} times floor + SELECT.", highlight=False
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-latency", description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="transitions per second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a round (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds not counted (default: %(default)g)")
    parser.add_argument(
        "--pin", action="store_true", help="server on the first core, the clients on the last, PostgreSQL anywhere"
    )
    arguments = parser.parse_args()
    if min(arguments.rate, arguments.seconds) <= 0 or arguments.rounds < 1 or arguments.warm_up < 0:
        parser.error("rate, seconds and rounds must be positive")
    if arguments.rate * arguments.seconds < 2:
        parser.error("that makes fewer than two transitions")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

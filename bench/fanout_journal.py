"""From INSERT to many clients: PostgreSQL, the journal, the tail, the hub and the wire.

The server has the first core, the clients the last one; the writer and PostgreSQL share both. Latencies
are from just before the writer sends its UPDATE. Those of the warm-up are separate: it starts with a transition of
each connection of the writer, all at once, for which each backend compiles the trigger's function.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from urllib.parse import urlsplit

import asyncpg
import psutil
import uvloop

from bench.fanout import Generator, percentile
from bench.fanout_candidates import cpu_seconds
from bench.fanout_clients import Endpoint, ReadResult
from bench.fanout_payload import DAG_ID, run_id
from bench.recorder import BenchmarkError
from bench.testbed import Testbed, raise_on_sigterm, running_testbed
from bench.writer import CONNECTIONS, add_run, write_transitions
from stream_server.cli.demo.errors import DemoError
from stream_server.domain.run_state import RunKey

TARGETS = {50.0: 15.0, 500.0: 30.0}
"""Milliseconds that 99 % of all frames may take at most, by transitions per second, with 1,000 clients."""

RATE_KEPT = 0.95

WARM_UP_SECONDS = 1.0


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    parser = argparse.ArgumentParser(prog="bench-fanout-journal", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="(default: %(default)d)")
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0, 500.0], help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found: dict[float, list[dict[str, float]]] = {rate: [] for rate in arguments.rates}
    with raise_on_sigterm():
        try:
            for number in range(arguments.rounds):
                for rate, rounds in found.items():
                    print(f"round {number + 1}: {rate:g} transitions/s", file=sys.stderr, flush=True)
                    with running_testbed() as running:
                        rounds.append(_round(running, rate, arguments))
        except (BenchmarkError, DemoError, psutil.Error, OSError, asyncpg.PostgresError) as error:
            print(f"The benchmark broke: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    print(json.dumps(_figures(found, arguments.clients)))
    return 0


def _round(running: Testbed, rate: float, arguments: argparse.Namespace) -> dict[str, float]:
    cores = psutil.Process().cpu_affinity()
    running.server.cpu_affinity([cores[0]])
    key = RunKey(DAG_ID, run_id(0))
    instances = uvloop.run(add_run(running.database_url, key))
    port = urlsplit(running.server_url).port
    assert port is not None, "the testbed chose one"
    path = f"/api/v2/dags/{DAG_ID}/dagRuns/{{run}}/stream?until=run"
    generator = Generator(cores[-1])
    try:
        generator.request("target", Endpoint(port, path, websocket=False, opened=b"snapshot", feed_port=port))
        seconds = generator.request("connect", arguments.clients, 1)
        before = cpu_seconds(running.server.pid)
        warm_up = CONNECTIONS + round(rate * WARM_UP_SECONDS)
        count = warm_up + round(rate * arguments.seconds)
        commits = uvloop.run(write_transitions(running.database_url, instances, first=1, rate=rate, count=count))
        read: ReadResult = generator.request(
            "collect", {commit.number: commit.sent for commit in commits}, 1, 0.0, warm_up
        )
        used = cpu_seconds(running.server.pid) - before
    finally:
        generator.close()
    return {
        "p50_ms": percentile(read.latencies, 0.5),
        "p99_ms": percentile(read.latencies, 0.99),
        "warm_up_max_ms": read.warm_up[-1],
        "commit_p50_ms": 1000 * statistics.median(commit.acked - commit.sent for commit in commits),
        "rate_kept": (count - CONNECTIONS) / (commits[-1].sent - commits[CONNECTIONS - 1].sent),
        "server_us_per_frame": 1e6 * used / max(1, read.delivered),
        "expected": read.expected,
        "lost": read.lost,
        "doubled": read.doubled,
        "connects_per_s": arguments.clients / seconds,
    }


def _figures(found: dict[float, list[dict[str, float]]], clients: int) -> dict[str, object]:
    """Return medians over the rounds, and sums of lost or duplicated frames."""
    figures: dict[str, dict[str, object]] = {}
    misses = []
    for rate, rounds in found.items():
        total = {what: sum(one[what] for one in rounds) for what in ("expected", "lost", "doubled")}
        medians = {what: statistics.median(one[what] for one in rounds) for what in rounds[0] if what not in total}
        figures[f"{rate:g}/s"] = {
            **{what: round(figure, 2) for what, figure in medians.items()},
            "p99_ms_of_rounds": [round(one["p99_ms"], 2) for one in rounds],
            **total,
        }
        misses += [f"{rate:g}/s: {total[what]:g} frames {what}" for what in ("lost", "doubled") if total[what]]
        if medians["rate_kept"] < RATE_KEPT * rate:
            misses.append(f"{rate:g}/s: only {medians['rate_kept']:.0f} transitions/s could be written")
        target = TARGETS.get(rate)
        if target is not None and medians["p99_ms"] > target:
            misses.append(f"{rate:g}/s: p99 is {medians['p99_ms']:.1f} ms; the target is {target:g}")
    return {"benchmark": "fanout-journal", "clients": clients, "figures": figures, "misses": misses}


if __name__ == "__main__":
    sys.exit(main())

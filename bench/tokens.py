"""How soon a client reads a token that a running task emits, on a real Airflow: `make bench-tokens`.

A task under `@task.stream` yields tokens at a steady pace, each with the time. It is compared with the time at which a
client has its frame, which includes Airflow's own part: the push through supervisor and Execution API, and the
commit. The frame has the time at which its row was written: up to there it is the task's and Airflow's time,
after it PostgreSQL's commit and the server's. All clocks are those of one machine.

Each push has one row, whose id its frames have. A push is a request to Airflow and a transaction, so the tokens of a
push are the measure of Airflow's load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from bench.testbed import add_stack_option, airflow_stack
from stream_server.cli.demo.airflow_client import AirflowRestClient

DAGS = Path(__file__).resolve().parents[1] / "tests" / "airflow" / "dags"
DAG_ID = "stream_tokens"

TARGET_FIRST_MS = 150.0
"""Milliseconds from the yield of the first token to its frame, as a median."""

DEADLINE = 120.0

STEADY = {
    # By default, Airflow reads all DAG files every 30 s, which takes a core of two for seconds.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
}


class Token(NamedTuple):
    """The milliseconds of one token."""

    written: float
    """From its yield to its row: our batching, the supervisor, the Execution API, and its transaction up to there."""

    read: float
    """From its row to the client: the commit, and us."""

    row: int
    """Id of the row, which the tokens of a push have in common."""

    @property
    def total_ms(self) -> float:
        """Return the sum."""
        return self.written + self.read


async def main() -> int:
    """Run the benchmark and return its exit code."""
    options = _options()
    console = Console(stderr=True)
    with airflow_stack(options.stack, [DAGS], STEADY) as (server_url, airflow):
        runs = []
        while not airflow.get_dag(DAG_ID):
            time.sleep(0.5)  # noqa: ASYNC251 # nothing else runs yet
        for number in range(options.runs + 1):
            took = await _timed_run(server_url, airflow, options.tokens, options.per_second)
            if number:
                runs.append(took)
                _print_run(console, number, took)
    _print_report(runs, options.tokens, options.per_second)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs that count, after one that does not")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a run")
    parser.add_argument("--per-second", type=float, default=100.0, help="tokens yielded in a second")
    add_stack_option(parser)
    return parser.parse_args()


async def _timed_run(server_url: str, airflow: AirflowRestClient, tokens: int, per_second: float) -> list[Token]:
    """Return the times of each token.

    Raises:
        RuntimeError: A token is missing, duplicated or out of order.
    """
    run_id = await asyncio.to_thread(airflow.trigger_run, DAG_ID, {"tokens": tokens, "per_second": per_second})
    path = f"{server_url}/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/stream"
    took, numbers = [], []
    headers = {"Authorization": f"Bearer {airflow.token}"}
    async with (
        httpx.AsyncClient(timeout=DEADLINE, headers=headers) as client,
        client.stream("GET", path) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith('data: {"type":"chunk"'):
                now, frame = time.time(), json.loads(line.removeprefix("data: "))
                value, written = frame["value"], datetime.fromisoformat(frame["at"].replace("Z", "+00:00")).timestamp()
                took.append(Token((written - value["emitted_at"]) * 1000, (now - written) * 1000, frame["seq"]))
                numbers.append(value["number"])
    if numbers != list(range(tokens)):
        raise RuntimeError(f"{tokens} tokens were emitted, and {len(numbers)} arrived, or out of order")
    return took


def _print_run(console: Console, number: int, took: list[Token]) -> None:
    worst = max(range(len(took)), key=lambda index: took[index].total_ms)
    console.print(
        f"run {number}: first {took[0].total_ms:.1f} ms,"
        f" median {statistics.median(token.total_ms for token in took):.1f} ms,"
        f" worst {took[worst].total_ms:.1f} ms: token {worst}, {took[worst].written:.1f} ms of that up to its row;"
        f" {_tokens_per_push([took]):.2f} tokens in a push"
    )


def _print_report(runs: list[list[Token]], tokens: int, per_second: float) -> None:
    first = [run[0].total_ms for run in runs]
    all_ = [token for run in runs for token in run]
    parts = {
        "all": sorted(token.total_ms for token in all_),
        "written": sorted(token.written for token in all_),
        "read": sorted(token.read for token in all_),
    }
    shown = {"all": "yield to frame", "written": "yield to row", "read": "row to frame"}
    table = Table("ms", "median", "p95", "worst", title=f"{len(runs)} runs of {tokens} tokens, {per_second:g} a second")
    table.add_row("yield to frame, first token", f"{statistics.median(first):.1f}", "", f"{max(first):.1f}")
    for part, took in parts.items():
        table.add_row(shown[part], f"{statistics.median(took):.1f}", f"{_p95(took):.1f}", f"{took[-1]:.1f}")
    Console().print(table)
    per_push = _tokens_per_push(runs)
    Console().print(f"{per_push:.2f} tokens in a push: {per_second / per_push:.1f} pushes a second")
    misses = []
    if statistics.median(first) > TARGET_FIRST_MS:
        misses.append(f"median of the first token above {TARGET_FIRST_MS:g} ms")
    figures = {
        "runs": len(runs),
        "tokens": tokens,
        "per_second": per_second,
        "tokens_per_push": round(per_push, 2),
        "first_ms": {"median": round(statistics.median(first), 1), "max": round(max(first), 1)},
        **{
            f"{part}_ms": {
                "median": round(statistics.median(took), 1),
                "p95": round(_p95(took), 1),
                "max": round(took[-1], 1),
            }
            for part, took in parts.items()
        },
        "misses": misses,
    }
    print(json.dumps(figures))


def _tokens_per_push(runs: list[list[Token]]) -> float:
    return sum(map(len, runs)) / sum(len({token.row for token in run}) for run in runs)


def _p95(ordered: list[float]) -> float:
    return ordered[int(len(ordered) * 0.95)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

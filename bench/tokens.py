"""How soon a token is read that a running task says, on a real Airflow: `make bench-tokens`.

A task under `@task.stream` yields tokens at a steady pace, each with the time. It is compared with the time at which a
client has its frame, so that Airflow's own part is in it: the push through supervisor and Execution API, and the
commit. All clocks are those of one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from stream_server.demo.progress import ConsoleProgress
from stream_server.demo.rest import AirflowRest
from stream_server.demo.stack import DemoStack

DAGS = Path(__file__).resolve().parents[1] / "tests" / "airflow" / "dags"
DAG_ID = "stream_tokens"

AIM_FIRST_MS = 150.0
"""Milliseconds from the yield of the first token to its frame, as a median."""

DEADLINE = 120.0


async def main() -> int:
    """Run the benchmark and return its exit code."""
    options = _options()
    console = Console(stderr=True)
    with DemoStack(Path(".demo"), dags=[DAGS], progress=ConsoleProgress()) as stack, stack.rest() as airflow:
        runs = []
        while not airflow.dag(DAG_ID):
            time.sleep(0.5)  # noqa: ASYNC251 # nothing else runs yet
        for number in range(options.runs + 1):
            took = await _timed_run(stack, airflow, options.tokens, options.per_second)
            if number:
                runs.append(took)
                console.print(f"run {number}: first {took[0]:.1f} ms, median {statistics.median(took):.1f} ms")
    _report(runs, options.tokens, options.per_second)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs that count, after one that does not")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a run")
    parser.add_argument("--per-second", type=float, default=100.0, help="tokens yielded in a second")
    return parser.parse_args()


async def _timed_run(stack: DemoStack, airflow: AirflowRest, tokens: int, per_second: float) -> list[float]:
    """Return how many milliseconds each token took.

    Raises:
        RuntimeError: One is missing, came twice, or out of order.
    """
    run_id = await asyncio.to_thread(airflow.trigger, DAG_ID, {"tokens": tokens, "per_second": per_second})
    path = f"{stack.server_url}/api/v2/dags/{DAG_ID}/dagRuns/{run_id}/stream"
    took, numbers = [], []
    headers = {"Authorization": f"Bearer {airflow.token}"}
    async with (
        httpx.AsyncClient(timeout=DEADLINE, headers=headers) as client,
        client.stream("GET", path) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith('data: {"type":"chunk"'):
                value = json.loads(line.removeprefix("data: "))["value"]
                took.append((time.time() - value["said"]) * 1000)
                numbers.append(value["number"])
    if numbers != list(range(tokens)):
        raise RuntimeError(f"{tokens} tokens were said, and {len(numbers)} came, or not in order")
    return took


def _report(runs: list[list[float]], tokens: int, per_second: float) -> None:
    first, all_ = [run[0] for run in runs], sorted(took for run in runs for took in run)
    p95 = all_[int(len(all_) * 0.95)]
    table = Table("", "median", "p95", "worst", title=f"{len(runs)} runs of {tokens} tokens, {per_second:g} a second")
    table.add_row("yield to frame, first token, ms", f"{statistics.median(first):.1f}", "", f"{max(first):.1f}")
    table.add_row("yield to frame, all, ms", f"{statistics.median(all_):.1f}", f"{p95:.1f}", f"{all_[-1]:.1f}")
    Console().print(table)
    misses = []
    if statistics.median(first) > AIM_FIRST_MS:
        misses.append(f"median of the first token above {AIM_FIRST_MS:g} ms")
    figures = {
        "runs": len(runs),
        "tokens": tokens,
        "per_second": per_second,
        "first_ms": {"median": round(statistics.median(first), 1), "max": round(max(first), 1)},
        "all_ms": {"median": round(statistics.median(all_), 1), "p95": round(p95, 1), "max": round(all_[-1], 1)},
        "misses": misses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""How early the result arrives, on a real Airflow: `make bench-early`.

Each run has a teardown after its result task. The result's frame is timed against the row that the trigger wrote inside
Airflow's transaction (so its commit is part of the time), and against Airflow's own `GET …/wait?interval=1`, which runs
beside it. All clocks are those of one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import datetime

import httpx
from rich.console import Console
from rich.table import Table

from bench.testbed import add_stack_option, airflow_stack
from stream_server.cli.demo.airflow_client import AirflowRestClient

TARGET_MS = 100.0
"""Milliseconds from the journal row to the frame, as a median."""

DEADLINE = 120.0


@dataclass(frozen=True)
class Timing:
    """One run."""

    frame_ms: float
    """Milliseconds from the journal row's `at` to the arrival of the `result` frame."""

    ahead_s: float
    """Seconds from the `result` frame to the answer of Airflow's `/wait`."""


async def main() -> int:
    """Run the benchmark and return its exit code."""
    options = _options()
    console = Console(stderr=True)
    with airflow_stack(options.stack) as (server_url, airflow):
        await _timed_run(server_url, airflow, teardown=0)
        timings = []
        for number in range(1, options.runs + 1):
            timings.append(await _timed_run(server_url, airflow, teardown=options.teardown))
            console.print(f"run {number}: {timings[-1]}", highlight=False)
    _print_report(timings, options.teardown)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--teardown", type=float, default=10.0, help="seconds that each run's teardown takes")
    add_stack_option(parser)
    return parser.parse_args()


async def _timed_run(server_url: str, airflow: AirflowRestClient, teardown: float) -> Timing:
    run_id = await asyncio.to_thread(airflow.trigger_run, "chat_answer", {"teardown_seconds": teardown})
    waiting = asyncio.create_task(asyncio.to_thread(_time_airflow_wait, airflow, run_id))
    arrived, frame = await asyncio.wait_for(_result_frame(server_url, airflow.token, run_id), DEADLINE)
    written = datetime.fromisoformat(frame["at"].replace("Z", "+00:00")).timestamp()
    answered = await asyncio.wait_for(waiting, DEADLINE)
    return Timing(frame_ms=(arrived - written) * 1000, ahead_s=answered - arrived)


def _time_airflow_wait(airflow: AirflowRestClient, run_id: str) -> float:
    airflow.wait_at_airflow("chat_answer", run_id, interval=1.0)
    return time.time()


async def _result_frame(url: str, token: str, run_id: str) -> tuple[float, dict[str, str]]:
    path = f"{url}/api/v2/dags/chat_answer/dagRuns/{run_id}/stream"
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(timeout=DEADLINE, headers=headers) as client,
        client.stream("GET", path) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith('data: {"type":"result"'):
                return time.time(), json.loads(line.removeprefix("data: "))
    raise RuntimeError("The stream ended without a result")


def _print_report(timings: list[Timing], teardown: float) -> None:
    frames = [timing.frame_ms for timing in timings]
    ahead = [timing.ahead_s for timing in timings]
    table = Table("", "median", "worst", title=f"{len(timings)} runs with a teardown of {teardown:g} s")
    table.add_row("journal row to result frame, ms", f"{statistics.median(frames):.1f}", f"{max(frames):.1f}")
    table.add_row("result frame ahead of Airflow's /wait, s", f"{statistics.median(ahead):.2f}", f"{min(ahead):.2f}")
    Console().print(table)
    misses = []
    if statistics.median(frames) > TARGET_MS:
        misses.append(f"median from journal row to frame above {TARGET_MS:g} ms")
    if min(ahead) <= teardown - 1:
        misses.append(f"a result less than {teardown - 1:g} s ahead of /wait")
    figures = {
        "runs": len(timings),
        "frame_ms": {"median": round(statistics.median(frames), 2), "max": round(max(frames), 2)},
        "ahead_s": {"median": round(statistics.median(ahead), 2), "min": round(min(ahead), 2)},
        "misses": misses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""The longest steps of the event loop while a run of a large DAG is watched: `make bench-large-dags`.

The tail, the reads of runs and the hub run in this process, on a real PostgreSQL; a process of its own writes. While a
run of a large DAG changes, it is watched by one subscription from before the first change, and by another one each
second. A task in the same event loop finds out how late it is called. A run of a small DAG changes together with the
large one, and its delay is from the acknowledged commit to the frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from bench.bulk_rows import Instance, add_instances, add_runs, add_values, read_instance_ids
from bench.large_dag_scenarios import ANSWER, Scenario, Step, chain, make_scenarios
from bench.recorder import BenchmarkError
from bench.testbed import raise_on_sigterm, running_database
from bench.writer import STATES, UPDATE, Commit
from stream_server.cli.demo.errors import DemoError
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.hub.hub import Hub
from stream_server.hub.subscription import Subscription
from stream_server.journal.run_store import RunStore
from stream_server.journal.tail import Tail
from stream_server.protocol.frames import TaskTransition
from stream_server.server.main import GC_THRESHOLDS, SWITCH_SECONDS
from stream_server.server.metrics import Metrics
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql

TARGET_MS = 10.0
INTERVAL_SECONDS = 0.05
TICK_SECONDS = 0.001
JOIN_SECONDS = 1.0
STRAGGLER_SECONDS = 20.0
START_SECONDS = 30.0
OTHER_TASK = "first"


@dataclass
class Ticks:
    """How late a task of the event loop is called."""

    late: list[float] = field(default_factory=list)
    """Seconds."""

    cpu: list[float] = field(default_factory=list)
    """Seconds of CPU of the event loop's thread, from one call to the next."""

    async def run(self) -> None:
        """Tick until cancelled."""
        used = time.thread_time()
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.late.append(time.monotonic() - due)
            before, used = used, time.thread_time()
            self.cpu.append(used - before)


@dataclass
class Watcher:
    """Takes the frames of a subscription."""

    subscription: Subscription
    received: dict[int, float] = field(default_factory=dict)
    """When the first transition came with each number as its try number."""

    frames: int = 0

    def __post_init__(self) -> None:
        self.subscription.on_due(self._take)

    def _take(self) -> None:
        at = time.monotonic()
        for wire in self.subscription.take():
            self.frames += 1
            if isinstance(wire.frame, TaskTransition):
                self.received.setdefault(wire.frame.try_number, at)


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    options = _arguments()
    figures: dict[str, dict[str, float]] = {}
    with raise_on_sigterm():
        try:
            with (
                running_database() as (url, _),
                ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as writer,
            ):
                for scenario in make_scenarios(options, max(2, round(options.seconds / INTERVAL_SECONDS))):
                    print(scenario.name, file=sys.stderr, flush=True)
                    figures[scenario.name] = uvloop.run(_measure(url, scenario, writer))
        except (BenchmarkError, DemoError, OSError, asyncpg.PostgresError) as error:
            print(f"The benchmark broke: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    _show(figures)
    lost = sum(each["lost"] for each in figures.values())
    misses = _misses(figures)
    print(json.dumps({"benchmark": "large-dags", "figures": figures, "lost": lost, "misses": misses}))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-large-dags", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each scenario (default: %(default)g)")
    parser.add_argument("--tasks", type=int, default=5000, help="of one DAG (default: %(default)d)")
    parser.add_argument("--links", type=int, default=200, help="branches or setups in a row (default: %(default)d)")
    parser.add_argument("--mebibytes", type=int, default=20, help="of a serialised DAG (default: %(default)d)")
    parser.add_argument("--instances", type=int, default=10_000, help="of a mapped task (default: %(default)d)")
    parser.add_argument("--results", type=int, default=1000, help="result tasks (default: %(default)d)")
    options = parser.parse_args()
    if min(vars(options).values()) <= 0:
        parser.error("all numbers must be positive")
    return options


async def _measure(url: str, scenario: Scenario, writer: ProcessPoolExecutor) -> dict[str, float]:
    """Return the figures of a scenario, in milliseconds."""
    key, other = RunKey(scenario.name.replace(" ", "_"), "run"), RunKey(f"beside {scenario.name}", "run")
    version, instance = await _add_rows(url, scenario, key, other)
    loop, ticks = asyncio.get_running_loop(), Ticks()
    # The server does the same before it serves.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)
    async with _running_hub(url) as hub:
        beside = Watcher(await hub.subscribe(other, WatchOptions(until="run")))
        ticking = asyncio.create_task(ticks.run())
        watchers: list[Watcher] = []
        watching = asyncio.create_task(_watch(hub, key, scenario.options, watchers))
        try:
            commits = await loop.run_in_executor(writer, _write, url, key, version, scenario.steps, instance)
            deadline = time.monotonic() + STRAGGLER_SECONDS
            last = len(commits)
            # The first load may take longer than all steps. An event would be set while we measure.
            while (len(beside.received) < last or not watchers) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(INTERVAL_SECONDS)
            await asyncio.sleep(JOIN_SECONDS)
            if watching.done():
                watching.result()
            if not watchers:
                raise BenchmarkError(f"The run was not loaded in {STRAGGLER_SECONDS:g} s: {scenario.name}")
        finally:
            for task in (ticking, watching):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        delays = [beside.received[one.number] - one.acked for one in commits if one.number in beside.received]
    gc.unfreeze()
    return {
        "longest_step_ms": round(1000 * max(ticks.late), 2),
        "longest_step_cpu_ms": round(1000 * max(ticks.cpu), 2),
        "steps_above_target": sum(1000 * late > TARGET_MS for late in ticks.late),
        "longest_delay_ms": round(1000 * max([0.0, *delays]), 2),
        "transitions": len(commits),
        "frames": watchers[0].frames,
        "lost": len(commits) - len(delays),
    }


async def _add_rows(url: str, scenario: Scenario, key: RunKey, other: RunKey) -> tuple[UUID, UUID]:
    """Write both runs; return the version of the large DAG, and the task instance of the other run that changes."""
    async with AirflowSql.open(url) as airflow:
        version = await airflow.add_serialized_dag(key.dag_id, scenario.serialized(key.dag_id))
        await add_runs(airflow, key.dag_id, [key.run_id], version)
        await add_instances(airflow, key.dag_id, [key.run_id], version, scenario.instances)
        await add_values(airflow, key.dag_id)
        small = await airflow.add_dag(
            other.dag_id, {name: node.below for name, node in chain([OTHER_TASK, ANSWER]).items()}
        )
        await add_runs(airflow, other.dag_id, [other.run_id], small)
        await add_instances(airflow, other.dag_id, [other.run_id], small, [Instance(OTHER_TASK), Instance(ANSWER)])
        await airflow.connection.execute("ANALYZE task_instance")
        (instance,) = await read_instance_ids(airflow, other.dag_id, OTHER_TASK)
    return version, instance


@asynccontextmanager
async def _running_hub(url: str) -> AsyncIterator[Hub]:
    """Run a hub that follows the journal, with the default settings of a server."""
    settings, metrics = Settings.load(database_url=url, port=0), Metrics()
    store = RunStore(
        settings.database_address,
        pool_size=settings.pool_size,
        max_result_bytes=settings.max_result_bytes,
        max_output_bytes=settings.max_output_bytes,
    )
    hub = Hub(store, max_queued_bytes=settings.max_queued_bytes, observer=metrics)
    tail = Tail(
        settings.database_address,
        hub,
        poll_interval=settings.poll_interval,
        check_interval=settings.check_interval,
        observer=metrics,
    )
    following = asyncio.create_task(tail.run())
    try:
        deadline = time.monotonic() + START_SECONDS
        while not hub.is_live:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"The journal was not reached: {'; '.join(tail.status.problems)}")
            await asyncio.sleep(INTERVAL_SECONDS)
        yield hub
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await hub.close()
        await store.close()


async def _watch(hub: Hub, key: RunKey, options: WatchOptions, watchers: list[Watcher]) -> None:
    """Watch a run, and join it again every second."""
    while True:
        watchers.append(Watcher(await hub.subscribe(key, options)))
        await asyncio.sleep(JOIN_SECONDS)


def _write(url: str, key: RunKey, version: UUID, steps: Sequence[Step], other: UUID) -> list[Commit]:
    """Write the steps of a run, and with each a transition of the other run. Called in the writer's process."""
    return uvloop.run(_write_steps(url, key, version, steps, other))


async def _write_steps(url: str, key: RunKey, version: UUID, steps: Sequence[Step], other: UUID) -> list[Commit]:
    commits = []
    async with AirflowSql.open(url) as airflow:
        update = await airflow.connection.prepare(UPDATE)
        began = time.monotonic()
        for number, step in enumerate(steps, 1):
            await asyncio.sleep(max(0.0, began + number * INTERVAL_SECONDS - time.monotonic()))
            match step.kind:
                case "state":
                    await airflow.set_task(key, step.task_id, step.state, step.map_index)
                case "value":
                    await airflow.run_task(key, step.task_id, step.map_index, step.map_index)
                case "version":
                    version = await _copy_version(airflow, version)
                    await airflow.move_to_version(key, version, [step.task_id])
            sent = time.monotonic()
            await update.fetch(other, STATES[number % len(STATES)], number)
            commits.append(Commit(number, sent, time.monotonic(), airflow.connection.get_server_pid()))
    return commits


async def _copy_version(airflow: AirflowSql, version: UUID) -> UUID:
    """Write another version of a DAG with the same content."""
    copy = uuid4()
    async with airflow.connection.transaction():
        await airflow.connection.execute(
            "INSERT INTO dag_version (id, version_number, dag_id, created_at, last_updated)"
            " SELECT $2, version_number + 1, dag_id, now(), now() FROM dag_version WHERE id = $1",
            version,
            copy,
        )
        await airflow.connection.execute(
            "INSERT INTO serialized_dag (id, dag_id, created_at, last_updated, dag_hash, dag_version_id, data)"
            " SELECT gen_random_uuid(), dag_id, now(), now(), dag_hash, $2, data FROM serialized_dag"
            " WHERE dag_version_id = $1",
            version,
            copy,
        )
    return copy


def _show(figures: dict[str, dict[str, float]]) -> None:
    table = Table(title=f"Milliseconds; the target is {TARGET_MS:g} each", title_justify="left")
    columns = ("", "longest step", "its CPU time at most", "steps above", "longest delay of another run")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, each in figures.items():
        keys = ("longest_step_ms", "longest_step_cpu_ms", "steps_above_target", "longest_delay_ms")
        table.add_row(name, *(f"{each[one]:g}" for one in keys))
    Console(width=max(120, Console().width), file=sys.stderr).print(table)


def _misses(figures: dict[str, dict[str, float]]) -> list[str]:
    texts: dict[str, str] = {"longest_step_ms": "a step of", "longest_delay_ms": "another run's stream was late by"}
    misses: list[Any] = [
        f"{name}: {text} {each[figure]:.1f} ms; the target is {TARGET_MS:g}"
        for name, each in figures.items()
        for figure, text in texts.items()
        if each[figure] > TARGET_MS
    ]
    return misses + [f"{name}: {each['lost']} frames lost" for name, each in figures.items() if each["lost"]]


if __name__ == "__main__":
    sys.exit(main())

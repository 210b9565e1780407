"""Each scenario in all ways: one process and workers, four transports, open and with permissions; fresh, late, resumed.

After each step all clients know what Airflow's tables have, also those of streams of many runs. In the end a client
that resumes at any frame knows the same as one that was never disconnected, and the same as one that joins then.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from stream_server.domain.run_state import FINAL_RUN_STATES, RunKey
from support.airflow_sql import AirflowSql
from support.firehose_watchers import FirehoseWatcher
from support.run_knowledge import RunKnowledge, Tables, read_instances, read_tables
from support.run_watchers import RunWatcher
from support.scenario_servers import all_ways
from support.scenarios import SCENARIOS
from support.scenarios.scenario_run import Expected, ScenarioRun
from support.stream_receivers import StreamRefused, Way

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = {"until": "run"}

RESUMES_AT_ONCE = 8

RESUME_WAYS = int(os.environ.get("SCENARIO_RESUME_WAYS", "2"))
"""In how many ways a client resumes at each frame. They alternate, so that all ways occur."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ways(scenario_database: str) -> AsyncIterator[list[Way]]:
    async with all_ways(scenario_database) as ways:
        yield ways


class WatchingClients:
    """All clients that watch a scenario.

    Args:
        airflow: A session that reads Airflow's tables.
        ways: The ways to watch.
    """

    def __init__(self, airflow: AirflowSql, ways: list[Way]) -> None:
        self._airflow = airflow
        self._ways = ways
        self._turns = itertools.cycle(ways)
        self._watching: list[RunWatcher] = []
        self.first: list[RunWatcher] = []
        """The clients that watch from the beginning, one for each way."""

        self.firehoses: list[FirehoseWatcher] = []
        """The clients of streams of many runs that watch since before the run was created, one for each server."""

    async def start(self, run: ScenarioRun) -> None:
        """Watch the runs of a DAG that does not exist yet."""
        # The ways are a table of transports and servers: this is its diagonal.
        diagonal = self._ways[:: len({way.target.name for way in self._ways}) + 1]
        self.firehoses = [FirehoseWatcher(way, run.key) for way in diagonal]
        await asyncio.gather(*(watcher.has_started() for watcher in self.firehoses))

    async def step(self, run: ScenarioRun) -> None:
        """Check that all clients know what the tables have; then one joins, and one resumes where another is."""
        tables = await read_tables(self._airflow.connection, run.key)
        if not self.first:
            self.first = [RunWatcher(way, run.key, OPTIONS) for way in self._ways]
            self._watching = [*self.first]
        if tables.run is not None:
            await asyncio.gather(*(watcher.knows(tables) for watcher in self._watching))
        await self._check_firehoses(run, tables)
        if tables.run is None or tables.run[0] in FINAL_RUN_STATES:
            await asyncio.gather(*(watcher.has_ended() for watcher in self._watching))
            self._watching = []
            return
        self._watching.append(RunWatcher(next(self._turns), run.key, OPTIONS))
        points = [point for watcher in self.first[:4] for point in watcher.points()[-3:]]
        for point in points[:2]:
            self._watching.append(RunWatcher(next(self._turns), run.key, OPTIONS, point))
        # The next move may delete the run.
        await asyncio.gather(*(watcher.has_started() for watcher in self._watching))

    async def finish(self, run: ScenarioRun, expected: Expected) -> None:
        """Check that all know the same, however they came to it."""
        tables = await read_tables(self._airflow.connection, run.key)
        remaining = self._watching
        await asyncio.gather(*(watcher.has_ended() for watcher in remaining))
        await self._check_firehoses(run, tables)
        await self._check_firehose_resumes(run)
        if tables.run is None:
            await self._check_deleted(run, expected, remaining)
            return
        late = [RunWatcher(way, run.key, OPTIONS) for way in self._ways]
        await asyncio.gather(*(watcher.has_ended() for watcher in late))
        final = late[0].knowledge
        assert final.tables == tables
        check_outcome(final, expected)
        for watcher in (*late, *remaining):
            assert watcher.knowledge.everything == final.everything, watcher.name
        await self._check_resumes(run, final)

    async def close(self) -> None:
        await asyncio.gather(*(watcher.close() for watcher in (*self.first, *self._watching)))
        await asyncio.gather(*(watcher.close() for watcher in self.firehoses))

    async def _check_firehoses(self, run: ScenarioRun, tables: Tables) -> None:
        instances = await read_instances(self._airflow.connection, run.key)
        await asyncio.gather(*(watcher.knows(tables, instances) for watcher in self.firehoses))
        if tables.run is not None and self._watching:
            await asyncio.gather(*(one.has_output_of(self._watching[0].knowledge) for one in self.firehoses))

    async def _check_firehose_resumes(self, run: ScenarioRun) -> None:
        """Check that a client that resumes at any frame gets each transition that it has missed, once."""
        gate = asyncio.Semaphore(RESUMES_AT_ONCE)
        live, turns = self.firehoses[0], itertools.cycle(self._ways)
        for other in self.firehoses[1:]:
            assert other.transitions == live.transitions, other.name

        async def resume(way: Way, number: int) -> None:
            async with gate:
                watcher = FirehoseWatcher(way, run.key, (live, number))
                try:
                    await watcher.has_continued()
                finally:
                    await watcher.close()

        await asyncio.gather(*(resume(next(turns), number) for number in live.cursors))

    async def _check_deleted(self, run: ScenarioRun, expected: Expected, remaining: list[RunWatcher]) -> None:
        for watcher in remaining:
            check_outcome(watcher.knowledge, expected)
        for way in self._ways:
            with pytest.raises(StreamRefused) as refused:
                await RunWatcher(way, run.key, OPTIONS).has_ended()
            assert refused.value.status == 404

    async def _check_resumes(self, run: ScenarioRun, final: RunKnowledge) -> None:
        turns = itertools.cycle(self._ways)
        gate = asyncio.Semaphore(RESUMES_AT_ONCE)

        async def resume(way: Way, point: tuple[RunKnowledge, str], number: int, *, until: str = "run") -> None:
            async with gate:
                watcher = RunWatcher(way, run.key, {"until": until}, point)
                await watcher.has_ended()
            known, expected = watcher.knowledge.everything, final.everything
            if until == "result":
                known, expected = {"outcome": known["outcome"]}, {"outcome": expected["outcome"]}
            assert known == expected, f"{watcher.name}, at point {number}: {point[0]}\n{watcher.frames}"

        points = {cursor: knowledge for watcher in self.first for knowledge, cursor in watcher.points()}
        assert points
        resumes = []
        for number, (cursor, knowledge) in enumerate(points.items()):
            point = knowledge, cursor
            resumes += [resume(next(turns), point, number) for _ in range(RESUME_WAYS)]
            resumes.append(resume(next(turns), point, number, until="result"))
        await asyncio.gather(*resumes)


def check_outcome(knowledge: RunKnowledge, expected: Expected) -> None:
    """Check the outcome that a client knows against that of the scenario."""
    assert knowledge.end == (expected.type or "none")
    if expected.type is None:
        assert knowledge.outcome is None
        assert expected.fields.items() <= knowledge.missing.items()
        return
    assert knowledge.outcome is not None
    found = {name: knowledge.outcome.get(name) for name in expected.fields}
    assert (knowledge.outcome["type"], found) == (expected.type, dict(expected.fields))


@pytest.mark.parametrize("name", SCENARIOS)
async def test_all_clients_know_the_same(ways: list[Way], scenario_database: str, name: str) -> None:
    async with (
        AirflowSql.open(scenario_database) as airflow,
        AirflowSql.open(scenario_database) as other,
        AirflowSql.open(scenario_database) as reader,
    ):
        clients = WatchingClients(reader, ways)
        run = ScenarioRun(airflow, other, name, lambda: clients.step(run))
        try:
            await clients.start(run)
            expected = await SCENARIOS[name](run)
            await clients.finish(run, expected)
        finally:
            await clients.close()


async def test_all_clients_know_why_a_run_waits(ways: list[Way], scenario_database: str) -> None:
    """A full DAG, then a paused one; the server looks every two seconds. Clients join and resume meanwhile."""
    async with AirflowSql.open(scenario_database) as airflow, AsyncExitStack() as stack:

        def watch(points: Iterable[tuple[RunKnowledge, str] | None]) -> list[RunWatcher]:
            started = [RunWatcher(way, run.key, OPTIONS, point) for way, point in zip(ways, points, strict=True)]
            for watcher in started:
                stack.push_async_callback(watcher.close)
            return started

        async def know(watchers: list[RunWatcher], **waiting: object) -> None:
            await asyncio.gather(*(watcher.knows_why_it_waits(waiting or None) for watcher in watchers))

        async def set_dag(**values: object) -> None:
            for name, value in values.items():
                await airflow.connection.execute(f"UPDATE dag SET {name} = $2 WHERE dag_id = $1", run.key.dag_id, value)

        run = ScenarioRun(airflow, airflow, "that_waits", lambda: asyncio.sleep(0))
        await run.trigger()
        other = RunKey(run.key.dag_id, "other")
        await airflow.trigger(other, run.version, [])
        await airflow.set_run(other, "running")
        await set_dag(max_active_runs=1)
        first = watch([None] * len(ways))
        await know(first, reason="active_runs", active_runs=1)
        await set_dag(is_paused=True)
        late = watch([None] * len(ways))
        await know([*first, *late], reason="dag_paused")
        # Each resumes at another server than the one that its cursor is from.
        resumed = watch(watcher.points()[-1] for watcher in (*late[1:], late[0]))
        await know(resumed, reason="dag_paused")
        await set_dag(is_paused=False, max_active_runs=2)
        watchers = [*first, *late, *resumed]
        await know(watchers)
        await run.set_run("running")
        await run.set_run("success")
        await asyncio.gather(*(watcher.has_ended() for watcher in watchers))

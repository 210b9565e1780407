"""Random moves of Airflow and of people: after each one, all clients know the same, and what the tables have."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stream_server.domain.run_state import FINAL_RUN_STATES
from support.airflow_moves import RunMoves
from support.airflow_sql import AirflowSql
from support.firehose_watchers import FirehoseWatcher
from support.run_knowledge import RunKnowledge, Tables, read_instances, read_tables
from support.run_watchers import RunWatcher
from support.scenario_servers import all_ways
from support.scenarios.scenario_run import ScenarioRun
from support.stream_receivers import Way
from support.version_moves import VersionMoves

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_MOVES = 40

RUNS = int(os.environ.get("RANDOM_RUNS", "10"))
"""Number of random runs. Hypothesis prints the moves of a failed one. It does not shrink it: each try takes seconds."""

OPTIONS = {"until": "run"}

_numbers = itertools.count(1)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ways(scenario_database: str) -> AsyncIterator[list[Way]]:
    async with all_ways(scenario_database) as ways:
        yield ways


class ComparedClients:
    """A client that was never disconnected, and after each move one that joins and one that resumes."""

    def __init__(self, run: ScenarioRun, reader: AirflowSql, ways: list[Way], data: st.DataObject) -> None:
        self._run = run
        self._reader = reader
        self._ways = st.sampled_from(ways)
        self._draw = data.draw
        self._live: RunWatcher | None = None
        self._firehose: FirehoseWatcher | None = None
        self._points: list[tuple[RunKnowledge, str]] = []
        """What was known at each cursor, of all clients that were never disconnected."""

    async def watch_many_runs(self) -> None:
        """Start a client of a stream of many runs, before the run is created."""
        self._firehose = FirehoseWatcher(self._draw(self._ways, "way"), self._run.key)
        await self._firehose.has_started()

    async def compare(self) -> None:
        """Wait until all clients know what the tables have."""
        tables = await read_tables(self._reader.connection, self._run.key)
        if self._firehose is not None:
            await self._compare_firehose(self._firehose, tables)
        if tables.run is None:
            if self._live is not None:
                await self._live.has_ended()
                await self._disconnect()
            return
        live = self._live = self._live or self._watch()
        await live.knows(tables)
        others = [self._watch()]
        # The number of points depends on how many rows the server read at once, so it must not decide what is drawn.
        number = self._draw(st.integers(0, 1000), "resumes after")
        if points := self._points + live.points():
            others.append(self._watch(points[number % len(points)]))
        try:
            if tables.run[0] in FINAL_RUN_STATES:
                await asyncio.gather(*(one.has_ended() for one in (live, *others)))
            for other in others:
                await other.knows_the_same(live)
            if self._firehose is not None:
                await self._firehose.has_output_of(live.knowledge)
        finally:
            await asyncio.gather(*(one.close() for one in others))
        if tables.run[0] in FINAL_RUN_STATES:
            await self._disconnect()

    async def close(self) -> None:
        for client in (self._live, self._firehose):
            if client is not None:
                await client.close()

    async def _compare_firehose(self, firehose: FirehoseWatcher, tables: Tables) -> None:
        """Check it, and one that resumes where it was once."""
        instances = await read_instances(self._reader.connection, self._run.key)
        await firehose.knows(tables, instances)
        number = firehose.cursors[self._draw(st.integers(0, 1000), "resumes after") % len(firehose.cursors)]
        resumed = FirehoseWatcher(self._draw(self._ways, "way"), self._run.key, (firehose, number))
        try:
            await resumed.has_continued()
            await resumed.knows(tables, instances)
        finally:
            await resumed.close()

    def _watch(self, point: tuple[RunKnowledge, str] | None = None) -> RunWatcher:
        return RunWatcher(self._draw(self._ways, "way"), self._run.key, OPTIONS, point)

    async def _disconnect(self) -> None:
        """Keep the points of the client that is not needed any more, and let the next step connect again."""
        assert self._live is not None
        self._points += self._live.points()
        await self._live.close()
        self._live = None


@settings(
    max_examples=RUNS,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_all_clients_know_the_same_after_each_move(
    ways: list[Way], scenario_database: str, data: st.DataObject
) -> None:
    async with (
        AirflowSql.open(scenario_database) as airflow,
        AirflowSql.open(scenario_database) as reader,
    ):
        run = ScenarioRun(airflow, reader, f"random_{next(_numbers)}", lambda: clients.compare())  # noqa: PLW0108
        clients = ComparedClients(run, reader, ways, data)
        versions = VersionMoves(run, data.draw(st.sampled_from([[], ["stream-result:join"]]), "tags"))
        moves = RunMoves(run, versions, data.draw(st.integers(1, 3), "length"))
        try:
            # Without such a client, a server whose run has ended has no client at all.
            if data.draw(st.booleans(), "a client watches many runs"):
                await clients.watch_many_runs()
            await versions.trigger()
            for _ in range(data.draw(st.integers(1, MAX_MOVES), "number of moves")):
                possible = await moves.possible()
                await possible[data.draw(st.sampled_from(sorted(possible)), "move")]()
                await clients.compare()
        finally:
            await clients.close()

"""`airflow db migrate` from version to version, with the triggers installed and rows in the tables."""

from __future__ import annotations

import itertools

import pytest

from matrix.airflow_processes import NEWEST
from matrix.environments import HAS_UPCOMING, UPCOMING
from matrix.streaming_checks import (
    FREQUENT_CHECKS,
    NEVER,
    assert_asks,
    assert_native_marks,
    assert_streams,
    assert_triggers_restored,
    get_readiness,
    running_server_on,
    trigger_new_run,
)
from matrix.upgraded_databases import DATABASE_VERSIONS, HAS_FIRST, UpgradedDatabases
from matrix.versioned_sql import LEAVES, VersionedSql, request_human_input
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import fetch_status
from support.skipping import skip_or_fail
from support.streams import sse, states

STEPS = list(itertools.pairwise(DATABASE_VERSIONS))

DOWNGRADE = ["downgrade", "--to-version", NEWEST, "--yes"]

NEW_TABLES = {
    "3.1.8": ["trigger stream_server_input on hitl_detail is missing"],
    UPCOMING: [
        *(
            f"trigger stream_server_{name} on task_instance is not that of this version"
            for name in ("deletion", "task", "task_created")
        ),
        "trigger stream_server_xcom on xcom_v2 is missing",
    ],
}
"""Problems that remain after the migration to a version until `install` runs."""


@pytest.mark.parametrize(("before", "version"), STEPS)
async def test_an_upgrade_keeps_rows_journal_and_triggers(
    databases: UpgradedDatabases, before: str, version: str
) -> None:
    below, upgraded = await databases.database_at(before), await databases.database_at(version)
    assert upgraded.rows == below.rows
    assert upgraded.epoch == below.epoch
    assert sorted(upgraded.problems) == NEW_TABLES.get(version, [])
    found = await fetch_status(await databases.copy_of(version))
    assert (found.problems, found.losses) == ([], 0)


@pytest.mark.parametrize("version", DATABASE_VERSIONS)
async def test_streaming_works_at_each_version(databases: UpgradedDatabases, version: str) -> None:
    url = await databases.copy_of(version)
    async with running_server_on(url) as server:
        assert await get_readiness(server) == (200, [])
        await assert_streams(url, server)


async def test_marks_of_the_newest_version_are_read(databases: UpgradedDatabases) -> None:
    url = await databases.copy_of(NEWEST)
    async with running_server_on(url) as server:
        await assert_native_marks(url, server)


@pytest.mark.parametrize("version", DATABASE_VERSIONS[1:])
async def test_requests_for_human_input_are_recorded(databases: UpgradedDatabases, version: str) -> None:
    async with VersionedSql.open(await databases.copy_of(version)) as airflow:
        await request_human_input(airflow, RunKey("history", "manual__queued"), "ask")
        kinds = await airflow.connection.fetch("SELECT kind FROM stream_server.journal ORDER BY id DESC LIMIT 1")
    assert [row["kind"] for row in kinds] == ["input"]


@pytest.mark.parametrize(("before", "version"), STEPS)
async def test_a_server_and_its_streams_survive_an_upgrade(
    databases: UpgradedDatabases, before: str, version: str
) -> None:
    url = await databases.copy_of(before)
    # Without a check, the triggers are not adapted to the tables of 3.4.
    async with running_server_on(url, FREQUENT_CHECKS if version == UPCOMING else NEVER) as server:
        async with VersionedSql.open(url) as airflow:
            key = await trigger_new_run(airflow, LEAVES, {})
            await airflow.set_run(key, "running")
        async with sse(server.url, key, "?result=answer", timeout=60) as events:
            assert (await events.next())["type"] == "snapshot"
            await databases.airflow_db(version, url, "migrate")
            if version == UPCOMING:
                await assert_triggers_restored(url)
            async with VersionedSql.open(url) as airflow:
                await airflow.run_task(key, "answer", "after all")
            frames = await events.rest()
        assert states(frames, "answer")[:3] == ["scheduled", "queued", "running"]
        assert frames[-2]["results"] == {"answer": "after all"}
        await assert_streams(url, server)


async def test_a_server_reads_marks_after_an_upgrade_while_it_runs(databases: UpgradedDatabases) -> None:
    url = await databases.copy_of("3.2.2")
    async with running_server_on(url) as server:
        await assert_streams(url, server)
        await databases.airflow_db(NEWEST, url, "migrate")
        await assert_native_marks(url, server)


async def test_a_server_adapts_the_triggers_to_tries_as_rows_and_back(databases: UpgradedDatabases) -> None:
    if not HAS_UPCOMING:
        skip_or_fail("Airflow 3.4 needs Python 3.11 or newer")
    url = await databases.copy_of(NEWEST)
    async with VersionedSql.open(url) as airflow:
        await request_human_input(airflow, RunKey("history", "manual__running"), "ask")
        before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    async with running_server_on(url, FREQUENT_CHECKS) as server:
        for command in (["migrate"], DOWNGRADE):
            await databases.airflow_db(UPCOMING, url, *command)
            async with VersionedSql.open(url) as airflow:
                rows = "SELECT kind, run_id, task_id, state FROM stream_server.journal WHERE id > $1"
                assert await airflow.connection.fetch(rows, before) == []
            await assert_triggers_restored(url)
            # In a downgrade the triggers switch themselves off; switching them on counts a loss.
            losses = (await fetch_status(url)).losses if command == DOWNGRADE else 0
            await assert_streams(url, server, losses=losses)
            await assert_asks(url, server)
            async with VersionedSql.open(url) as airflow:
                before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")


async def test_a_server_adds_a_trigger_to_a_new_table(databases: UpgradedDatabases) -> None:
    if not HAS_FIRST:
        skip_or_fail("Airflow 3.0, the only one without hitl_detail, needs Python 3.12 or older")
    url = await databases.copy_of("3.0.6")
    async with running_server_on(url, FREQUENT_CHECKS) as server:
        await databases.airflow_db("3.1.8", url, "migrate")
        await assert_triggers_restored(url)
        await assert_streams(url, server)

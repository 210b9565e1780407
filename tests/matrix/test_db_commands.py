"""`airflow db downgrade`, `clean` and `reset`, and `stream-server uninstall`, on a database in use."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from matrix.airflow_processes import NEWEST
from matrix.streaming_checks import (
    FREQUENT_CHECKS,
    assert_native_marks,
    assert_streams,
    assert_triggers_restored,
    get_readiness,
    running_server_on,
)
from matrix.upgraded_databases import DATABASE_VERSIONS, VERSIONS, UpgradedDatabases, install_now
from matrix.versioned_sql import VersionedSql
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import fetch_status
from support.streams import sse, types

PREVIOUS = VERSIONS[-2]
LATER = DATABASE_VERSIONS[len(VERSIONS) :]
"""Pre-releases."""

CLEAN = ("clean", "--clean-before-timestamp", "2100-01-01", "--yes", "--error-on-cleanup-failure")
"""All runs that have started; without the last option, tables that cannot be cleaned are no error."""

OURS = """
SELECT 'schema', nspname::text FROM pg_namespace WHERE nspname LIKE '%stream_server%'
UNION ALL SELECT 'class', oid::regclass::text FROM pg_class WHERE oid::regclass::text LIKE '%stream_server%'
UNION ALL SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE oid::regprocedure::text LIKE '%stream_server%'
UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE tgname LIKE '%stream_server%'
UNION ALL SELECT 'setting', array_to_string(setconfig, ' ') FROM pg_db_role_setting
"""


def uninstall(url: str) -> None:
    command = [sys.executable, "-m", "stream_server", "uninstall", "--database-url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_downgrade_and_upgrade_again_under_a_server(databases: UpgradedDatabases) -> None:
    url = await databases.copy_of(NEWEST)
    async with running_server_on(url) as server:
        await assert_native_marks(url, server)
        await databases.airflow_db(NEWEST, url, "downgrade", "--to-version", PREVIOUS, "--yes")
        assert (await fetch_status(url)).problems == []
        await assert_streams(url, server)
        async with running_server_on(url) as fresh:
            await assert_streams(url, fresh)
        await databases.airflow_db(NEWEST, url, "migrate")
        assert (await fetch_status(url)).problems == []
        await assert_native_marks(url, server)


@pytest.mark.parametrize(
    ("version", "options"), [(NEWEST, ()), (NEWEST, ("--skip-archive",)), *((version, ()) for version in LATER)]
)
async def test_clean(databases: UpgradedDatabases, version: str, options: tuple[str, ...]) -> None:
    url = await databases.copy_of(version)
    async with running_server_on(url) as server:
        async with sse(server.url, RunKey("history", "manual__running"), "?until=run", timeout=60) as events:
            await events.until("snapshot")
            await databases.airflow_db(version, url, *CLEAN, *options)
            frames = await events.rest()
        assert (types(frames)[-1], frames[-1]["state"]) == ("end", None)
        await assert_streams(url, server)
    async with VersionedSql.open(url) as airflow:
        runs = await airflow.connection.fetch("SELECT run_id FROM dag_run WHERE dag_id = 'history'")
        archived = await airflow.connection.fetch(
            r"SELECT FROM pg_class WHERE relkind = 'r' AND relname LIKE '\_airflow\_deleted\_\_dag\_run\_\_%'"
        )
    assert {row["run_id"] for row in runs} == {"manual__queued", "manual__cleared"}, "runs without a start are kept"
    assert len(archived) == (0 if options else 1)
    assert (await fetch_status(url)).problems == []


@pytest.mark.parametrize("version", [NEWEST, *LATER])
async def test_reset_drops_the_triggers_and_install_restores_them(databases: UpgradedDatabases, version: str) -> None:
    url = await databases.copy_of(version)
    before = await fetch_status(url)
    async with running_server_on(url) as server:
        await databases.airflow_db(version, url, "reset", "--yes")
        assert (await fetch_status(url)).problems == [
            f"trigger {trigger.trigger} on {trigger.table} is missing" for trigger in before.triggers
        ]
        await install_now(url)
        assert await fetch_status(url) == before
        await assert_streams(url, server)
        await assert_native_marks(url, server)
    async with running_server_on(url) as fresh:
        assert await get_readiness(fresh) == (200, [])
        await assert_streams(url, fresh)


async def test_a_server_restores_the_triggers_after_a_reset(databases: UpgradedDatabases) -> None:
    url = await databases.copy_of(NEWEST)
    async with running_server_on(url, FREQUENT_CHECKS) as server:
        async with sse(server.url, RunKey("history", "manual__running"), "?until=run", timeout=60) as events:
            await events.until("snapshot")
            await databases.airflow_db(NEWEST, url, "reset", "--yes")
            await assert_triggers_restored(url)
            frames = await events.rest()
        assert [frame["reason"] for frame in frames if frame["type"] == "failure"] == ["run_deleted"]
        await assert_streams(url, server)


async def test_uninstall_leaves_nothing_of_ours_after_all_upgrades(databases: UpgradedDatabases) -> None:
    url = await databases.copy_of(NEWEST)
    async with VersionedSql.open(url) as airflow:
        assert await airflow.connection.fetch(OURS)
        await asyncio.to_thread(uninstall, url)
        assert [tuple(row) for row in await airflow.connection.fetch(OURS)] == []
    await databases.airflow_db(NEWEST, url, "downgrade", "--to-version", PREVIOUS, "--yes")

"""The journal's own schema: an upgrade equals a fresh install, and servers work with neighbouring versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import asyncpg
import httpx
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import InstallError, JournalMissing
from stream_server.journal import installer as installing
from stream_server.journal.installer import fetch_status, install_journal
from stream_server.journal.queries import load_migrations
from stream_server.journal.status import SCHEMA_VERSION, load_queries_for
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.server import running_server, terminate_connections
from support.streams import sse, states, types
from support.waiting import eventually_answered, eventually_async

SCHEMAS = Path(__file__).parent / "schemas"
OLD_VERSIONS = range(1, SCHEMA_VERSION)

DESCRIPTION = """
SELECT 'column', format('%s.%s %s', a.attrelid::regclass, a.attnum, a.attname),
       format('%s %s %s', format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'stream_server'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = 'stream_server'
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'stream_server'::regnamespace
UNION ALL SELECT 'function', p.oid::regprocedure::text, format('%s %s', pg_get_functiondef(p.oid), p.proacl)
FROM pg_proc p WHERE p.pronamespace = 'stream_server'::regnamespace
UNION ALL SELECT 'options', oid::regclass::text, format('%s %s', relkind, reloptions) FROM pg_class
WHERE relnamespace = 'stream_server'::regnamespace
UNION ALL SELECT 'sequence', sequencename, format('%s %s', min_value, start_value) FROM pg_sequences
WHERE schemaname = 'stream_server'
UNION ALL SELECT 'comment', coalesce(objoid::regclass::text, ''), description FROM pg_description
WHERE objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'stream_server'::regnamespace)
UNION ALL SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'stream_server%'
"""


async def install_now(url: str) -> None:
    await install_journal(url, "public", lock_timeout=1, attempts=1)


def installed_by(version: int) -> list[Path]:
    """Return the scripts of an older version, in order."""
    return sorted(SCHEMAS.glob(f"{version:04}*.sql"))


async def install_version(url: str, version: int) -> None:
    """Install the journal as an older version did."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("".join(part.read_text() for part in installed_by(version)))
    finally:
        await connection.close()


async def describe_schema(url: str) -> set[tuple[str, ...]]:
    """Return the objects of the journal's schema, without data."""
    connection = await asyncpg.connect(url)
    try:
        return {tuple(map(str, row)) for row in await connection.fetch(DESCRIPTION)}
    finally:
        await connection.close()


@contextmanager
def next_version(migration: str, oldest_server: int = SCHEMA_VERSION) -> Iterator[None]:
    """Make the installer install a further version."""
    migrations = {**load_migrations(), SCHEMA_VERSION + 1: migration}
    with (
        patch.object(installing, "SCHEMA_VERSION", SCHEMA_VERSION + 1),
        patch.object(installing, "OLDEST_COMPATIBLE_SERVER", oldest_server),
        patch.object(installing, "load_migrations", lambda: migrations),
    ):
        yield


def test_migrations_are_numbered_without_a_gap_up_to_this_version() -> None:
    assert list(load_migrations()) == list(range(1, SCHEMA_VERSION + 1))
    kept = {version: installed_by(version) for version in OLD_VERSIONS}
    assert all(kept.values())
    assert sorted(SCHEMAS.iterdir()) == [part for parts in kept.values() for part in parts]


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_an_upgrade_ends_in_the_schema_of_a_fresh_install(airflow_database: str, version: int) -> None:
    await install_now(airflow_database)
    fresh = await describe_schema(airflow_database)
    await installing.uninstall_journal(airflow_database, lock_timeout=1, attempts=1)

    await install_version(airflow_database, version)
    assert await describe_schema(airflow_database) != fresh
    async with AirflowSql.open(airflow_database) as airflow:
        await airflow.trigger(RunKey("chat", "r"), await airflow.add_dag("chat", CHAIN), list(CHAIN))
        rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
        before = await airflow.connection.fetchrow("SELECT epoch, installed_at FROM stream_server.meta")
        assert (await fetch_status(airflow_database)).outdated_functions is not None
        await install_now(airflow_database)
        assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == rows > 0
        assert await airflow.connection.fetchrow("SELECT epoch, installed_at FROM stream_server.meta") == before
    assert await describe_schema(airflow_database) == fresh
    found = await fetch_status(airflow_database)
    assert (found.version, found.problems, found.warnings) == (SCHEMA_VERSION, [], [])


async def test_a_new_server_works_on_the_journal_before_and_while_it_is_upgraded(
    airflow_database: str, settings_for: Callable[[str], Settings]
) -> None:
    await install_version(airflow_database, SCHEMA_VERSION - 1)
    async with AirflowSql.open(airflow_database) as airflow, running_server(settings_for(airflow_database)) as server:
        key = RunKey("chat", "r")
        await airflow.trigger(key, await airflow.add_dag("chat", CHAIN), list(CHAIN))
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, key) as events:
            await events.next()
            await airflow.set_task(key, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"
            await install_now(airflow_database)
            await airflow.set_task(key, "ask", "queued")
            await airflow.run_task(key, "clean_up", "done")
            frames = await events.rest()
        assert "reset" not in types(frames)
        assert states(frames, "ask") == ["queued"]
        async with httpx.AsyncClient(base_url=server.url) as client:
            await eventually_answered(lambda: is_ready(client))


async def test_this_server_works_on_the_next_journal(
    airflow_database: str, settings_for: Callable[[str], Settings]
) -> None:
    await install_now(airflow_database)
    async with AirflowSql.open(airflow_database) as airflow, running_server(settings_for(airflow_database)) as server:
        key = RunKey("chat", "r")
        await airflow.trigger(key, await airflow.add_dag("chat", CHAIN), list(CHAIN))
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, key) as events:
            await events.next()
            with next_version("ALTER TABLE stream_server.journal ADD COLUMN new_thing text DEFAULT 'new'"):
                await install_now(airflow_database)
            await airflow.set_task(key, "ask", "scheduled")
            assert (await events.next())["state"] == "scheduled"
            await terminate_connections(airflow.connection)
            await airflow.run_task(key, "clean_up", "done")
            assert "reset" not in types(await events.rest())
        async with httpx.AsyncClient(base_url=server.url) as client:
            await eventually_answered(lambda: is_ready(client))


async def test_this_server_reports_a_journal_that_is_too_new(airflow_database: str) -> None:
    await install_now(airflow_database)
    with next_version("SELECT", oldest_server=SCHEMA_VERSION + 1):
        await install_now(airflow_database)
    message = (
        f"the journal has version {SCHEMA_VERSION + 1}, which needs a newer stream-server;"
        f" this one knows {SCHEMA_VERSION}"
    )
    assert (await fetch_status(airflow_database)).problems == [message]
    connection = await asyncpg.connect(airflow_database)
    with pytest.raises(JournalMissing, match=message):
        await load_queries_for(connection)
    await connection.close()


async def test_an_older_install_does_not_touch_a_newer_journal(airflow_database: str) -> None:
    with next_version("CREATE TABLE stream_server.new_thing ()"):
        await install_now(airflow_database)
    before = await describe_schema(airflow_database)
    with pytest.raises(InstallError, match=f"has version {SCHEMA_VERSION + 1}, made by a newer stream-server"):
        await install_now(airflow_database)
    assert await describe_schema(airflow_database) == before


async def test_a_failed_migration_changes_nothing(journal: str) -> None:
    before = await describe_schema(journal)
    with next_version("CREATE TABLE stream_server.new_thing (); SELECT 1 / 0"), pytest.raises(Exception, match="zero"):
        await install_now(journal)
    assert await describe_schema(journal) == before
    assert (await fetch_status(journal)).problems == []


@pytest.mark.parametrize("missing", ["TABLE stream_server.journal", "SEQUENCE stream_server.losses"])
async def test_an_incomplete_journal_is_recreated(journal: str, missing: str) -> None:
    fresh, epoch = await describe_schema(journal), (await fetch_status(journal)).epoch
    connection = await asyncpg.connect(journal)
    await connection.execute(f"DROP {missing}")
    await connection.close()
    await install_now(journal)
    assert await describe_schema(journal) == fresh
    assert (await fetch_status(journal)).epoch != epoch, "readers notice"


@pytest.fixture
def settings_for() -> Callable[[str], Settings]:
    return lambda url: Settings.load(database_url=url, port=0, grace_period=2.0)


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/ready")).status_code == 200

"""`install`, `uninstall` and `status` on Airflow's database."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.errors import InstallError, JournalUnreachable
from stream_server.journal.airflow_tables import MAP_INDEX_COLUMNS
from stream_server.journal.installer import (
    build_install_sql,
    disable_triggers,
    enable_triggers,
    fetch_status,
    install_journal,
    uninstall_journal,
)
from stream_server.journal.reader import READER_SETTINGS
from stream_server.journal.status import SCHEMA_VERSION, load_queries_for
from support.airflow_sql import CHAIN, AirflowSql
from support.streams import DEADLINE
from support.tcp_proxy import TcpProxy

CATALOG = """
SELECT 'class', n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
UNION ALL SELECT 'function', n.nspname || '.' || p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'type', n.nspname || '.' || t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%temp%'
UNION ALL SELECT 'privilege', c.relname || c.relacl::text FROM pg_class c WHERE c.relacl IS NOT NULL
"""


async def install_now(url: str) -> None:
    await install_journal(url, "public", lock_timeout=1, attempts=1)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def catalog(url: str) -> set[tuple[str, str]]:
    """Return every object of a database that the installer could have created."""
    async with connected(url) as connection:
        # TOAST tables are named by the oid of their table, which triggers do not change.
        return {tuple(row) for row in await connection.fetch(CATALOG)}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_server", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


async def test_uninstall_leaves_nothing_behind(airflow_database: str) -> None:
    before = await catalog(airflow_database)
    await install_now(airflow_database)
    assert await catalog(airflow_database) > before
    await uninstall_journal(airflow_database, lock_timeout=1, attempts=1)
    assert await catalog(airflow_database) == before


async def test_uninstall_works_on_an_incomplete_journal(journal: str) -> None:
    async with connected(journal) as connection:
        await connection.execute("DROP TABLE stream_server.meta; DROP FUNCTION stream_server.record_xcom() CASCADE")
    await uninstall_journal(journal, lock_timeout=1, attempts=1)
    await uninstall_journal(journal, lock_timeout=1, attempts=1)
    assert not {name for kind, name in await catalog(journal) if "stream_server" in name}


async def test_install_is_idempotent_and_keeps_the_journal(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    before = await fetch_status(journal)
    rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    await install_now(journal)
    assert await fetch_status(journal) == before
    assert rows == 4
    assert await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal") == rows


async def test_a_second_install_locks_none_of_airflows_tables(journal: str) -> None:
    async with connected(journal) as busy, busy.transaction():
        await busy.execute("LOCK TABLE task_instance, dag_run, xcom IN ROW EXCLUSIVE MODE")
        await install_now(journal)


async def test_a_second_install_does_not_wait_for_writers_of_the_journal(
    journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    async with airflow.connection.transaction():
        await airflow.set_task(run, "ask", "scheduled")
        await install_now(journal)


async def test_install_gives_up_while_airflow_holds_a_lock(airflow_database: str) -> None:
    before = await catalog(airflow_database)
    async with connected(airflow_database) as busy, busy.transaction():
        await busy.execute("LOCK TABLE xcom IN ROW EXCLUSIVE MODE")
        with pytest.raises(InstallError, match=r"in all of 2 attempts of 0\.1 s"):
            await install_journal(airflow_database, "public", lock_timeout=0.1, attempts=2)
    assert await catalog(airflow_database) == before


async def test_two_installs_at_once_both_succeed(airflow_database: str) -> None:
    await asyncio.gather(*(install_journal(airflow_database, "public", lock_timeout=5, attempts=3) for _ in range(3)))
    assert (await fetch_status(airflow_database)).problems == []


async def test_install_reports_what_is_missing(postgres: object, airflow_database: str) -> None:
    with pytest.raises(InstallError, match=r"Schema 'elsewhere'.*airflow db migrate"):
        await install_journal(airflow_database, "elsewhere", lock_timeout=1, attempts=1)


async def test_install_works_in_a_schema_of_another_name(airflow_database: str) -> None:
    async with connected(airflow_database) as connection:
        await connection.execute('CREATE SCHEMA "Air flow"')
        for table in (*MAP_INDEX_COLUMNS, "hitl_detail"):
            await connection.execute(f'ALTER TABLE {table} SET SCHEMA "Air flow"')
    await install_journal(airflow_database, "Air flow", lock_timeout=1, attempts=1)
    found = await fetch_status(airflow_database)
    assert (found.airflow_schema, found.problems) == ("Air flow", [])


async def test_the_triggers_do_not_block_airflows_migrations(journal: str, airflow: AirflowSql) -> None:
    """They have no column list and no WHEN with a column, which make `airflow db migrate` fail."""
    triggers = await airflow.connection.fetch(
        "SELECT tgrelid::regclass::text AS table_name, tgattr::text AS columns, tgqual IS NOT NULL AS has_when, tgname,"
        " tgtype & 2 = 0 AS after, p.prosecdef AS definer, p.proname, p.proconfig::text AS config"
        " FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid WHERE NOT tgisinternal"
    )
    assert {row["table_name"] for row in triggers} == {"dag_run", "hitl_detail", "task_instance", "xcom"}
    for row in triggers:
        assert (row["columns"], row["has_when"]) == ("", row["tgname"] == "stream_server_deletion")
        if row["proname"] == "begin_run_deletion":
            continue
        assert (row["after"], row["definer"]) == (True, True)
        # Its names are qualified: test_trigger_statements.py.
        assert row["proname"] == "record_task" or "search_path=pg_catalog, pg_temp" in row["config"]
    dependent = await airflow.connection.fetchval(
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace = 'stream_server'::regnamespace"
    )
    assert dependent == 0


async def test_heartbeats_and_bookkeeping_write_nothing(airflow: AirflowSql, run: RunKey) -> None:
    await airflow.start_task(run, "ask")
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    await airflow.heartbeat(run, "ask")
    await airflow.connection.execute("UPDATE dag_run SET last_scheduling_decision = now(), updated_at = now()")
    await airflow.push(run, "ask", 1, xcom_key="other")
    assert await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal") == before


async def test_another_dag_version_of_many_instances_is_one_row(airflow: AirflowSql, run: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    version = await airflow.add_dag(run.dag_id, CHAIN)
    await airflow.move_to_version(run, version, list(CHAIN))
    await airflow.move_to_version(run, version, list(CHAIN))
    assert await new_rows(airflow, before) == [("run_changed", *run)]


async def test_deleted_instances_are_one_row_for_each_run_that_is_left(airflow: AirflowSql, run: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    await airflow.connection.execute("DELETE FROM task_instance WHERE dag_id = $1 AND run_id = $2", *run)
    await airflow.connection.execute("DELETE FROM task_instance WHERE dag_id = $1 AND run_id = $2", *run)
    assert await new_rows(airflow, before) == [("run_changed", *run)]


async def test_instances_that_are_deleted_with_their_run_write_nothing(airflow: AirflowSql, run: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    await airflow.connection.execute("DELETE FROM dag_run WHERE dag_id = $1 AND run_id = $2", *run)
    assert await airflow.connection.fetchval("SELECT count(*) FROM task_instance") == 0, "the DELETE cascades"
    assert await new_rows(airflow, before) == [("run_deleted", *run)]


async def test_instances_that_are_deleted_with_another_row_are_one_row_for_their_run(
    airflow: AirflowSql, run: RunKey
) -> None:
    """`airflow db clean` deletes old triggers, and with them the deferred instances that wait for them."""
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    for task_id in CHAIN:
        await airflow.wait_for_trigger(run, task_id)
    await airflow.connection.execute("DELETE FROM trigger")
    assert await airflow.connection.fetchval("SELECT count(*) FROM task_instance") == 0, "the DELETE cascades"
    assert await new_rows(airflow, before) == [("run_changed", *run)]


async def test_instances_are_missed_in_a_cascade_of_any_table(airflow: AirflowSql, run: RunKey) -> None:
    """Airflow 3.0 deletes instances with their DAG version, and later versions may have more such keys."""
    await airflow.connection.execute(
        "CREATE TABLE grandparent (id integer PRIMARY KEY); INSERT INTO grandparent VALUES (1);"
        " CREATE TABLE parent (id integer PRIMARY KEY REFERENCES grandparent ON DELETE CASCADE);"
        " INSERT INTO parent VALUES (1);"
        " ALTER TABLE task_instance ADD parent_id integer REFERENCES parent ON DELETE CASCADE;"
        " UPDATE task_instance SET parent_id = 1"
    )
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    await airflow.connection.execute("DELETE FROM grandparent")
    assert await airflow.connection.fetchval("SELECT count(*) FROM task_instance") == 0, "the DELETE cascades"
    assert await new_rows(airflow, before) == [("run_changed", *run)]


async def test_deleted_runs_hide_no_instances_that_are_deleted_beside_them(airflow: AirflowSql, run: RunKey) -> None:
    version = await airflow.connection.fetchval("SELECT id FROM dag_version LIMIT 1")
    old, undone = RunKey(run.dag_id, "old"), RunKey(run.dag_id, "undone")
    for key in (old, undone):
        await airflow.trigger(key, version, list(CHAIN))
    await airflow.wait_for_trigger(run, "ask")
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    async with airflow.connection.transaction():
        await airflow.connection.execute("DELETE FROM dag_run WHERE run_id = 'old'")
        await airflow.connection.execute("DELETE FROM trigger")
    assert await new_rows(airflow, before) == [("run_deleted", *old), ("run_changed", *run)]
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    async with airflow.connection.transaction():
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with airflow.connection.transaction():
                await airflow.connection.execute("DELETE FROM dag_run WHERE 1 / (run_id <> 'undone')::integer = 1")
        await airflow.delete_instances(undone, "ask")
    assert await new_rows(airflow, before) == [("run_changed", *undone)]


async def test_deleted_instances_are_recorded_after_the_same_was_rolled_back(airflow: AirflowSql, run: RunKey) -> None:
    before = await airflow.connection.fetchval("SELECT max(id) FROM stream_server.journal")
    async with airflow.connection.transaction():
        savepoint = airflow.connection.transaction()
        await savepoint.start()
        await airflow.delete_instances(run, "ask")
        await savepoint.rollback()
        await airflow.delete_instances(run, "ask")
    assert await new_rows(airflow, before) == [("run_changed", *run)]


async def new_rows(airflow: AirflowSql, after: int) -> list[tuple[str, str, str]]:
    rows = await airflow.connection.fetch(
        "SELECT kind, dag_id, run_id FROM stream_server.journal WHERE id > $1 ORDER BY id", after
    )
    return [tuple(row) for row in rows]


async def test_a_large_value_does_not_enter_the_journal(airflow: AirflowSql, run: RunKey) -> None:
    await airflow.start_task(run, "ask")
    await airflow.push(run, "ask", "x" * 5_000_000, dag_result=True)
    size, mark = await airflow.connection.fetchrow(  # type: ignore[misc]
        "SELECT pg_column_size(journal.*), dag_result FROM stream_server.journal WHERE kind = 'xcom'"
    )
    assert size < 500
    assert mark is True


async def test_airflow_waits_only_briefly_for_a_locked_journal(airflow: AirflowSql, journal: str, run: RunKey) -> None:
    async with connected(journal) as locker:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("LOCK TABLE stream_server.journal IN ACCESS EXCLUSIVE MODE")
        async with airflow.connection.transaction():
            # One wait for the whole transaction: 50 waits of 100 ms each would exceed the statement timeout.
            await airflow.connection.execute("SET LOCAL statement_timeout = '2s'")
            for _ in range(50):
                await airflow.connection.execute("UPDATE task_instance SET try_number = try_number + 1")
        await transaction.rollback()
    await airflow.set_task(run, "ask", "scheduled")
    last = await airflow.connection.fetchval("SELECT state FROM stream_server.journal ORDER BY id DESC LIMIT 1")
    assert last == "scheduled"


async def test_status_reports_problems(journal: str, airflow: AirflowSql) -> None:
    await airflow.connection.execute("DROP TRIGGER stream_server_xcom ON xcom")
    await airflow.connection.execute("ALTER TABLE dag_run DISABLE TRIGGER stream_server_run")
    await airflow.connection.execute(
        "DROP TRIGGER stream_server_task ON task_instance;"
        " CREATE TRIGGER stream_server_task AFTER UPDATE OF state ON task_instance"
        " FOR EACH ROW EXECUTE FUNCTION stream_server.record_task()"
    )
    assert sorted((await fetch_status(journal)).problems) == [
        "trigger stream_server_run on dag_run is disabled",
        "trigger stream_server_task on task_instance is not that of this version",
        "trigger stream_server_xcom on xcom is missing",
    ]
    await install_now(journal)
    assert (await fetch_status(journal)).problems == []


async def test_status_reports_functions_of_another_version(journal: str, airflow: AirflowSql) -> None:
    assert (await fetch_status(journal)).warnings == []
    await airflow.connection.execute(
        "CREATE OR REPLACE FUNCTION stream_server.record_input() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'; DROP FUNCTION stream_server.release"
    )
    found = await fetch_status(journal)
    (warning,) = found.warnings
    assert found.problems == []
    assert "another version of stream_server (record_input, release); run `stream-server install`" in warning
    await disable_triggers(journal)
    assert (await fetch_status(journal)).warnings == [], "disabled triggers have functions of their own"
    await enable_triggers(journal)
    assert (await fetch_status(journal)).warnings == []


def test_the_commands_install_show_status_and_uninstall(airflow_database: str) -> None:
    sqlalchemy = airflow_database.replace("postgresql://", "postgresql+psycopg2://")
    before = command("status", "--database-url", sqlalchemy)
    assert (before.returncode, before.stdout) == (
        1,
        "the journal is not installed; run `stream-server install`\n",
    )
    installed = command("install", "--database-url", sqlalchemy)
    assert installed.returncode == 0, installed.stderr
    healthy = command("status", "--database-url", sqlalchemy)
    assert healthy.returncode == 0
    assert "trigger stream_server_task on task_instance: ok" in healthy.stdout
    status = json.loads(command("status", "--json", "--database-url", sqlalchemy).stdout)
    assert (status["well"], status["version"], len(status["triggers"])) == (True, SCHEMA_VERSION, 8)
    assert command("uninstall", "--database-url", sqlalchemy).returncode == 0
    assert command("status", "--database-url", sqlalchemy).returncode == 1


async def test_the_printed_sql_is_what_install_runs(airflow_database: str) -> None:
    printed = command("install", "--print-sql").stdout
    assert build_install_sql("public") in printed
    async with connected(airflow_database) as connection:
        await connection.execute(printed)
    assert (await fetch_status(airflow_database)).problems == []


async def test_an_unreachable_database_is_reported_without_the_password(unused_tcp_port: int) -> None:
    url = f"postgresql://airflow:s3cret@127.0.0.1:{unused_tcp_port}/airflow"
    with pytest.raises(JournalUnreachable, match="PostgreSQL does not answer") as raised:
        await fetch_status(url)
    assert "s3cret" not in str(raised.value)
    for arguments in (("status",), ("install",), ("uninstall",)):
        done = command(*arguments, "--database-url", url)
        assert done.returncode == 1
        assert done.stderr.startswith("stream-server: PostgreSQL does not answer")
        assert "s3cret" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr


def test_a_url_of_another_database_is_refused() -> None:
    done = command("status", "--database-url", "mysql://airflow:s3cret@localhost/airflow")
    assert done.returncode == 1
    assert "must begin with postgresql://" in done.stderr
    assert "s3cret" not in done.stderr


def test_a_missing_database_url_is_a_usage_error() -> None:
    done = command("status")
    assert (done.returncode, done.stderr) == (
        64,
        "stream-server: set --database-url or STREAM_SERVER_DATABASE_URL\n",
    )


@pytest.mark.parametrize("rows", [0, 20_000])
@pytest.mark.parametrize("analyzed", [True, False])
async def test_reading_the_journal_uses_its_index(journal: str, rows: int, *, analyzed: bool) -> None:
    async with connected(journal) as connection:
        await connection.execute(
            "INSERT INTO stream_server.journal (kind, txid) SELECT 'task', n::text::xid8"
            f" FROM generate_series(1000000, 1000000 + {rows}) AS n"
        )
        if analyzed:
            await connection.execute("ANALYZE stream_server.journal")
        query = (await load_queries_for(connection))["rows_after"]
        settings = "; ".join(f"SET {setting}" for setting in READER_SETTINGS)
        await connection.execute(f"{settings}; PREPARE read (text) AS {query}")
        plan = await connection.fetch("EXPLAIN EXECUTE read('900000:900000:')")
    text = "\n".join(row[0] for row in plan)
    assert text.count("Index Scan on journal_txid") == 2, text
    assert "Seq Scan on journal" not in text


async def test_a_database_that_does_not_respond_to_the_close_does_not_block(journal: str) -> None:
    url = urlsplit(journal)
    async with TcpProxy.listen(url.port) as proxy:
        proxy.swallows_close = True
        behind = url._replace(netloc=f"{url.username}@127.0.0.1:{proxy.port}").geturl()
        for command in (
            fetch_status(behind),
            install_journal(behind, "public", lock_timeout=1, attempts=1),
            disable_triggers(behind),
            enable_triggers(behind),
            uninstall_journal(behind, lock_timeout=1, attempts=1),
        ):
            await asyncio.wait_for(command, DEADLINE)

"""Statements that change many rows, or in unusual ways: each change is recorded once, with its own previous state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import asyncpg
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.journal.run_store import RunStore
from support.airflow_sql import AirflowSql
from support.skipping import skip_or_fail

KEY = RunKey("bulk", "r")
INSTANCES = 1000
STATES = ["scheduled", "queued", "running", None]

# The counter of transaction ids would not do: all sessions of the cluster take from it, autovacuum too.
SUBTRANSACTIONS = """SELECT (pg_stat_get_backend_subxact(id)).subxact_count FROM pg_stat_get_backend_idset() AS id
    WHERE pg_stat_get_backend_pid(id) = pg_backend_pid()"""

COLUMNS = "id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots, dag_version_id, state"
VALUES = "gen_random_uuid(), 't', 'bulk', 'r', n, 0, 0, 'default_pool', 1, (SELECT id FROM dag_version LIMIT 1)"


@pytest.fixture
async def bulk(airflow: AirflowSql) -> asyncpg.Connection[asyncpg.Record]:
    """A session of Airflow, with a run of one mapped task whose instances have different states, and no journal yet."""
    version = await airflow.add_dag(KEY.dag_id, {"t": []})
    await airflow.trigger(KEY, version, [])
    await airflow.connection.execute(
        f"INSERT INTO task_instance ({COLUMNS}) SELECT {VALUES}, ($1::text[])[1 + n % 4]"
        f" FROM generate_series(0, {INSTANCES - 1}) AS n",
        STATES,
    )
    await airflow.connection.execute("DELETE FROM stream_server.journal")
    return airflow.connection


async def fetch_recorded(session: asyncpg.Connection[asyncpg.Record]) -> list[tuple[int, str | None, str | None]]:
    """Return the map index, the previous and the new state of each row of the journal, in order."""
    rows = await session.fetch(
        "SELECT map_index, previous_state, state FROM stream_server.journal WHERE kind = 'task' ORDER BY id"
    )
    return [(row[0], row[1], row[2]) for row in rows]


async def fetch_losses(session: asyncpg.Connection[asyncpg.Record]) -> int:
    return int(await session.fetchval("SELECT last_value + is_called::integer FROM stream_server.losses"))


@pytest.mark.parametrize("order", ["map_index", "map_index DESC", "md5(map_index::text)"])
async def test_rows_are_recorded_in_the_order_in_which_they_are_locked(
    bulk: asyncpg.Connection[asyncpg.Record], order: str
) -> None:
    # Nested loops keep the order of the subquery, and each new version of a row is written behind the last one.
    await bulk.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")
    await bulk.execute(
        "UPDATE task_instance AS t SET state = 'success'"
        f" FROM (SELECT id FROM task_instance ORDER BY {order} OFFSET 0) AS wanted WHERE t.id = wanted.id"
    )
    recorded = await fetch_recorded(bulk)
    locked = [row["map_index"] for row in await bulk.fetch("SELECT map_index FROM task_instance ORDER BY ctid")]
    assert [index for index, *_ in recorded] == locked
    assert recorded == [(index, STATES[index % 4], "success") for index, *_ in recorded]
    assert len(recorded) == INSTANCES
    assert (locked == sorted(locked)) == (order == "map_index")


async def test_old_and_new_rows_are_paired_also_if_every_key_changes(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    await bulk.execute(
        f"UPDATE task_instance SET id = gen_random_uuid(), map_index = map_index + {INSTANCES}, state = 'success'"
    )
    recorded = await fetch_recorded(bulk)
    assert sorted(recorded) == [(INSTANCES + n, STATES[n % 4], "success") for n in range(INSTANCES)]


async def test_unchanged_rows_of_a_statement_are_not_recorded(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    await bulk.execute("UPDATE task_instance SET state = 'running', last_heartbeat_at = now()")
    changed = [n for n in range(INSTANCES) if STATES[n % 4] != "running"]
    assert sorted(index for index, *_ in await fetch_recorded(bulk)) == changed
    await bulk.execute("UPDATE task_instance SET last_heartbeat_at = now(), updated_at = now()")
    await bulk.execute("UPDATE task_instance SET state = 'failed' WHERE false")
    assert len(await fetch_recorded(bulk)) == len(changed)


@pytest.mark.parametrize("change", ["state = 'failed'", "try_number = 7", "map_index = 5000", "state = NULL"])
async def test_each_change_of_one_row_is_recorded_once(bulk: asyncpg.Connection[asyncpg.Record], change: str) -> None:
    for _ in range(2):
        await bulk.execute(f"UPDATE task_instance SET {change} WHERE map_index IN (0, 5000)")
    (recorded,) = await bulk.fetch("SELECT map_index, previous_state, state FROM stream_server.journal")
    states = (recorded["previous_state"], recorded["state"] == "scheduled")
    assert states == ("scheduled", not change.startswith("state"))


async def test_a_statement_that_inserts_and_updates_records_both(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    await bulk.execute(
        f"INSERT INTO task_instance ({COLUMNS}) SELECT {VALUES}, 'success'"
        f" FROM generate_series({INSTANCES - 8}, {INSTANCES + 7}) AS n"
        " ON CONFLICT (dag_id, task_id, run_id, map_index) DO UPDATE SET state = excluded.state"
    )
    updated = [(n, STATES[n % 4], "success") for n in range(INSTANCES - 8, INSTANCES)]
    inserted = [(n, None, "success") for n in range(INSTANCES, INSTANCES + 8)]
    assert sorted(await fetch_recorded(bulk)) == updated + inserted


async def test_a_merge_records_inserts_and_updates(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    if bulk.get_server_version() < (15,):
        skip_or_fail("MERGE needs PostgreSQL 15")
    await bulk.execute(
        f"MERGE INTO task_instance AS t USING generate_series(0, {INSTANCES + 1}) AS n ON t.map_index = n"
        " WHEN MATCHED AND n % 4 = 0 THEN UPDATE SET state = 'success' WHEN MATCHED AND n % 4 = 1 THEN DELETE"
        f" WHEN MATCHED THEN DO NOTHING WHEN NOT MATCHED THEN INSERT ({COLUMNS}) VALUES ({VALUES}, 'failed')"
    )
    updated = [(n, "scheduled", "success") for n in range(0, INSTANCES, 4)]
    inserted = [(INSTANCES + n, None, "failed") for n in range(2)]
    assert sorted(await fetch_recorded(bulk)) == updated + inserted


async def test_changes_of_one_statement_in_several_places_are_recorded(
    bulk: asyncpg.Connection[asyncpg.Record],
) -> None:
    await bulk.execute(
        "WITH a AS (UPDATE task_instance SET state = 'success' WHERE map_index < 10 RETURNING 1),"
        " b AS (UPDATE task_instance SET state = 'failed' WHERE map_index BETWEEN 10 AND 19 RETURNING 1)"
        " UPDATE task_instance SET state = 'skipped' WHERE map_index BETWEEN 20 AND 29"
    )
    states = ["success"] * 10 + ["failed"] * 10 + ["skipped"] * 10
    expected = [(n, STATES[n % 4], states[n]) for n in range(30)]
    assert sorted(await fetch_recorded(bulk)) == expected


async def test_copied_rows_are_recorded(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    version = await bulk.fetchval("SELECT id FROM dag_version LIMIT 1")
    names = [name.strip() for name in COLUMNS.split(",")]
    row = ("t", "bulk", "r", 0, 0, "default_pool", 1, version, "queued")
    await bulk.copy_records_to_table(
        "task_instance",
        records=[(await bulk.fetchval("SELECT gen_random_uuid()"), *row[:3], n, *row[3:]) for n in (2000, 2001)],
        columns=names,
    )
    assert await fetch_recorded(bulk) == [(2000, None, "queued"), (2001, None, "queued")]


async def test_a_trigger_of_others_may_change_and_suppress_rows(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    await bulk.execute(
        "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.map_index % 2 = 0 THEN RETURN NULL;"
        " END IF; NEW.state := 'removed'; RETURN NEW; END$$;"
        " CREATE TRIGGER other BEFORE UPDATE ON task_instance FOR EACH ROW EXECUTE FUNCTION other()"
    )
    await bulk.execute("UPDATE task_instance SET state = 'success' WHERE map_index < 10")
    assert sorted(await fetch_recorded(bulk)) == [(n, STATES[n % 4], "removed") for n in range(1, 10, 2)]


async def test_a_session_records_across_changes_of_the_table(
    bulk: asyncpg.Connection[asyncpg.Record], journal: str
) -> None:
    """A migration of Airflow changes its tables while sessions stay open."""
    migration = await asyncpg.connect(journal)
    for number, change in enumerate(
        (
            *("SELECT", "ADD added integer DEFAULT 1", "DROP COLUMN added", "DROP COLUMN hostname"),
            *("ALTER state TYPE text", "ALTER run_id TYPE varchar(500)", "ALTER state TYPE varchar(30)"),
        )
    ):
        if number:
            await migration.execute(f"ALTER TABLE task_instance {change}")
        for rows in (1, 3):
            await bulk.execute(f"UPDATE task_instance SET state = 's{number}-{rows}' WHERE map_index < {rows}")
        assert len(await fetch_recorded(bulk)) == 4 * (number + 1), change
    await migration.close()
    assert await fetch_losses(bulk) == 0


async def test_a_missing_column_of_airflow_fails_no_statement(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    await bulk.execute("UPDATE task_instance SET state = 'running' WHERE map_index = 0")
    await bulk.execute("ALTER TABLE task_instance RENAME try_number TO tries")
    await bulk.execute("ALTER TABLE dag_run RENAME clear_number TO clears")
    await bulk.execute("UPDATE task_instance SET state = 'success' WHERE map_index = 0")
    await bulk.execute("UPDATE task_instance SET state = 'success'")
    await bulk.execute("UPDATE dag_run SET state = 'success'")
    assert await bulk.fetchval("SELECT count(*) FROM task_instance WHERE state = 'success'") == INSTANCES
    assert await fetch_losses(bulk) > 0


async def test_a_plan_that_was_made_for_few_rows_serves_many(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    # Where few rows are joined, nested loops may be cheapest.
    await bulk.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")
    for state in ("queued", "running", "queued", "running", "queued", "running", "queued"):
        await bulk.execute(f"UPDATE task_instance SET state = '{state}' WHERE map_index < 2")
    await bulk.execute(
        f"INSERT INTO task_instance ({COLUMNS}) SELECT {VALUES}, NULL FROM generate_series({INSTANCES}, 19999) AS n"
    )
    before = len(await fetch_recorded(bulk))
    # Nested loops would compare 400 million pairs.
    await bulk.execute("SET statement_timeout = '20s'")
    await bulk.execute("UPDATE task_instance SET state = 'success'")
    assert len(await fetch_recorded(bulk)) == before + 20_000


async def test_a_statement_takes_one_subtransaction_for_its_rows(
    bulk: asyncpg.Connection[asyncpg.Record], airflow: AirflowSql
) -> None:
    if bulk.get_server_version() < (16,):
        skip_or_fail("pg_stat_get_backend_subxact() needs PostgreSQL 16")
    version = await bulk.fetchval("SELECT id FROM dag_version LIMIT 1")
    for statement in (
        "UPDATE task_instance SET state = 'success'",
        f"INSERT INTO task_instance ({COLUMNS}) SELECT {VALUES}, NULL FROM generate_series(5000, 5999) AS n",
        "INSERT INTO dag_run (dag_id, run_id, run_type, run_after) VALUES ('bulk', 'r2', 'manual', now())",
        "DELETE FROM dag_run",
    ):
        async with bulk.transaction():
            await bulk.execute(statement)
            assert await bulk.fetchval(SUBTRANSACTIONS) == 1, statement
    rows = await bulk.fetch("SELECT run_id, previous_state FROM stream_server.journal WHERE kind = 'run_deleted'")
    assert sorted(tuple(row) for row in rows) == [("r", "queued"), ("r2", None)]
    await airflow.trigger(RunKey("bulk", "r3"), version, ["t"])


async def test_times_that_python_cannot_hold_are_recorded(bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    for rows in (1, 2):
        await bulk.execute(
            f"UPDATE task_instance SET state = 's{rows}', start_date = 'infinity', end_date = '-infinity'"
            f" WHERE map_index < {rows}"
        )
    found = await bulk.fetchval(
        "SELECT count(*) FROM stream_server.journal WHERE start_date = 'infinity' AND end_date = '-infinity'"
    )
    assert (found, await fetch_losses(bulk)) == (3, 0)


async def test_another_version_is_recorded_once_for_each_run_of_a_transaction(
    bulk: asyncpg.Connection[asyncpg.Record], airflow: AirflowSql
) -> None:
    versions = [await airflow.add_dag(f"other{number}", {"t": []}) for number in range(2)]
    for statements in (
        [f"UPDATE task_instance SET dag_version_id = '{versions[0]}', state = 'success'"],
        [f"UPDATE task_instance SET dag_version_id = '{versions[1]}' WHERE map_index = {n}" for n in range(3)],
    ):
        await bulk.execute("DELETE FROM stream_server.journal")
        async with bulk.transaction():
            for statement in statements:
                await bulk.execute(statement)
        kinds = [row["kind"] for row in await bulk.fetch("SELECT kind FROM stream_server.journal ORDER BY id")]
        assert kinds == ["run_changed"] + ["task"] * (INSTANCES if len(statements) == 1 else 0)


HOSTILE = """
CREATE SCHEMA hostile; CREATE TABLE hostile.callers (name text);
GRANT ALL ON SCHEMA hostile TO PUBLIC; GRANT ALL ON hostile.callers TO PUBLIC;
CREATE FUNCTION hostile.note(what pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE sql AS
    $$INSERT INTO hostile.callers VALUES (current_user || ' ' || what); SELECT true$$;
CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (hostile.note('type text'));
CREATE DOMAIN hostile.bool AS pg_catalog.bool CHECK (hostile.note('type bool'));
CREATE FUNCTION hostile.current_setting(pg_catalog.text, pg_catalog.bool) RETURNS pg_catalog.text LANGUAGE sql AS
    $$SELECT hostile.note('current_setting')::pg_catalog.text$$;
CREATE FUNCTION hostile.current_setting(pg_catalog.text) RETURNS pg_catalog.text LANGUAGE sql AS
    $$SELECT hostile.note('current_setting')::pg_catalog.text$$;
CREATE FUNCTION hostile.set_config(pg_catalog.text, pg_catalog.text, pg_catalog.bool) RETURNS pg_catalog.text
    LANGUAGE sql AS $$SELECT hostile.note('set_config')::pg_catalog.text$$;
CREATE FUNCTION hostile.pg_notify(pg_catalog.text, pg_catalog.text) RETURNS void LANGUAGE sql AS
    $$SELECT hostile.note('pg_notify')$$;
CREATE FUNCTION hostile.nextval(regclass) RETURNS pg_catalog.int8 LANGUAGE sql AS
    $$SELECT hostile.note('nextval')::int::int8$$;
CREATE FUNCTION hostile.row_number() RETURNS pg_catalog.int8 LANGUAGE sql AS
    $$SELECT hostile.note('row')::int::int8$$;
CREATE FUNCTION hostile.pg_try_advisory_lock(integer, integer) RETURNS pg_catalog.bool LANGUAGE sql AS
    $$SELECT hostile.note('lock')$$;
CREATE FUNCTION hostile.pg_try_advisory_xact_lock_shared(integer, integer) RETURNS pg_catalog.bool LANGUAGE sql AS
    $$SELECT hostile.note('lock')$$;
CREATE FUNCTION hostile.pg_notification_queue_usage() RETURNS double precision LANGUAGE sql AS
    $$SELECT hostile.note('usage')::int::double precision$$;
CREATE FUNCTION hostile.concat(pg_catalog.text, pg_catalog.text, pg_catalog.text) RETURNS pg_catalog.text
    LANGUAGE sql AS
    $$SELECT hostile.note('concat')::pg_catalog.text$$;
CREATE TABLE hostile.new_rows (id integer); CREATE TABLE hostile.old_rows (id integer);
"""

OPERATORS = """
CREATE FUNCTION hostile.compare(a {type}, b {type}) RETURNS pg_catalog.bool LANGUAGE sql AS
    $$SELECT hostile.note('operator on {type}')$$;
CREATE OPERATOR hostile.= (LEFTARG = {type}, RIGHTARG = {type}, FUNCTION = hostile.compare);
CREATE OPERATOR hostile.<> (LEFTARG = {type}, RIGHTARG = {type}, FUNCTION = hostile.compare);
CREATE OPERATOR hostile.< (LEFTARG = {type}, RIGHTARG = {type}, FUNCTION = hostile.compare);
"""
TYPES = ("pg_catalog.text", "varchar", "integer", "bigint", "double precision", "uuid")


@pytest.fixture
def stranger(postgres: EmbeddedPostgres, journal: str) -> Iterator[Callable[[str], None]]:
    """A role that may change task instances, and nothing of the journal."""
    database = urlsplit(journal).path[1:]
    postgres.execute("CREATE ROLE stranger LOGIN")
    yield lambda sql: (postgres.execute(sql, database=database), None)[1]
    postgres.execute("DROP OWNED BY stranger CASCADE", database=database)
    postgres.execute("DROP ROLE stranger")


async def test_names_of_the_callers_schemas_are_not_used(
    journal: str, bulk: asyncpg.Connection[asyncpg.Record], stranger: Callable[[str], None]
) -> None:
    stranger(HOSTILE + "".join(OPERATORS.format(type=name) for name in TYPES))
    stranger("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO stranger")
    session = await asyncpg.connect(journal.replace("//airflow@", "//stranger@"))
    await session.execute("SET search_path = hostile, public, pg_catalog")
    version = await bulk.fetchval("SELECT id FROM dag_version LIMIT 1")
    for doorbell in ("on", "off"):
        await session.execute(f"SET stream_server.doorbell = '{doorbell}'")
        await session.execute(f"UPDATE task_instance SET state = '{doorbell}' WHERE map_index OPERATOR(pg_catalog.<) 2")
        await session.execute(
            f"UPDATE task_instance SET state = '1{doorbell}' WHERE map_index OPERATOR(pg_catalog.=) 3"
        )
        await session.execute(
            f"INSERT INTO task_instance ({COLUMNS}) VALUES (pg_catalog.gen_random_uuid(), 't', 'bulk', 'r', $1, 0, 0,"
            " 'default_pool', 1, $2, NULL)",
            9000 + len(doorbell),
            version,
        )
    await session.execute("UPDATE task_instance SET dag_version_id = NULL WHERE map_index OPERATOR(pg_catalog.=) 5")
    await bulk.execute("ALTER TABLE stream_server.journal RENAME TO elsewhere")
    await session.execute("UPDATE task_instance SET state = 'lost' WHERE map_index OPERATOR(pg_catalog.<) 2")
    await session.close()
    assert await bulk.fetchval("SELECT count(*) FROM stream_server.elsewhere") == 9
    assert await fetch_losses(bulk) == 1
    callers = await bulk.fetch("SELECT DISTINCT name FROM hostile.callers WHERE name NOT LIKE 'stranger %'")
    assert [row["name"] for row in callers] == []


async def test_a_publication_for_all_tables_stops_no_delete(
    postgres: EmbeddedPostgres, journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    postgres.execute("CREATE PUBLICATION everything FOR ALL TABLES", database=urlsplit(journal).path[1:])
    await airflow.start_task(run, "ask")
    await airflow.connection.execute("UPDATE stream_server.journal SET at = at - interval '1 hour'")
    store = RunStore(journal, pool_size=1, max_result_bytes=0)
    rows = await airflow.connection.fetchval("SELECT count(*) FROM stream_server.journal")
    assert await store.prune_journal(60.0, 1000) == rows > 0
    await store.close()
    without = await airflow.connection.fetch(
        "SELECT c.relname FROM pg_class c WHERE relnamespace = 'stream_server'::regnamespace AND relkind = 'r'"
        " AND relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)"
    )
    assert without == []


async def test_transactions_that_touch_different_rows_do_not_wait_for_each_other(
    journal: str, bulk: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Each has written to the journal before the other one; a lock to the end of a transaction would be a deadlock."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(AirflowSql.open(journal)) for _ in range(2)]
        transactions = [session.connection.transaction() for session in sessions]
        for transaction in transactions:
            await transaction.start()
        for step in range(6):
            for number, session in enumerate(sessions):
                await session.connection.execute("SET LOCAL lock_timeout = '2s'")
                first = 100 * number + 10 * step
                await session.connection.execute(
                    "UPDATE task_instance SET state = 'removed' WHERE map_index BETWEEN $1 AND $1 + $2",
                    first,
                    step,
                )
        for transaction in transactions:
            await transaction.commit()
    assert len(await fetch_recorded(bulk)) == 2 * sum(range(1, 7))
    assert await fetch_losses(bulk) == 0


async def test_concurrent_clears_make_no_deadlock(journal: str, bulk: asyncpg.Connection[asyncpg.Record]) -> None:
    """Schedulers and users lock a run first, and then its instances in one order; triggers add no other order."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await bulk.fetchval(deadlocks)

    async def clear(writer: int) -> None:
        async with AirflowSql.open(journal) as session:
            for number in range(20):
                async with session.connection.transaction():
                    await session.connection.execute("SELECT FROM dag_run WHERE dag_id = 'bulk' FOR UPDATE")
                    await session.connection.execute("UPDATE dag_run SET clear_number = clear_number + 1")
                    for index in range(writer, writer + 5):
                        await session.connection.execute(
                            "UPDATE task_instance SET state = $2, try_number = try_number + 1 WHERE map_index = $1",
                            index,
                            "queued" if number % 2 else None,
                        )
                    await session.connection.execute("UPDATE task_instance SET try_number = try_number + 1")

    await asyncio.gather(*(clear(writer) for writer in range(4)))
    assert await bulk.fetchval(deadlocks) == before
    assert await fetch_losses(bulk) == 0
    assert len(await fetch_recorded(bulk)) == 4 * 20 * (5 + INSTANCES)

"""Airflow's transactions commit despite any fault of the journal. The statements are those of Airflow's own models."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import disable_triggers, enable_triggers, fetch_status
from support.airflow_sql import AirflowSql

TESTS = Path(__file__).resolve().parents[1]
MAPPED = 100
"""Rows of one transaction: more than the 64 subtransactions of a transaction that PostgreSQL keeps in memory."""

RAISE = (
    "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS"
    " $$BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END$$;"
    " CREATE TRIGGER fail BEFORE INSERT ON stream_server.journal FOR EACH ROW EXECUTE FUNCTION public.fail()"
)

FAULTS = {
    "nothing": "SELECT",
    "journal dropped": "DROP TABLE stream_server.journal",
    "output dropped": "DROP TABLE stream_server.output",
    "output refused": "ALTER TABLE stream_server.output ADD CHECK (false) NOT VALID",
    "journal renamed": "ALTER TABLE stream_server.journal RENAME TO something_else",
    "index broken": "DROP INDEX stream_server.journal_txid",
    "column missing": "ALTER TABLE stream_server.journal DROP COLUMN state",
    "constraint violated": "ALTER TABLE stream_server.journal ADD CHECK (false) NOT VALID",
    "disk full": RAISE,
    "rights revoked": "REVOKE ALL ON stream_server.journal FROM airflow",
    "use of the schema revoked": "REVOKE ALL ON SCHEMA stream_server FROM airflow",
    "notify function dropped": "DROP FUNCTION stream_server.ring()",
    "notify function fails": "CREATE OR REPLACE FUNCTION stream_server.ring() RETURNS void LANGUAGE plpgsql"
    " AS 'BEGIN PERFORM 1 / 0; END'",
    "counter of losses dropped": "DROP SEQUENCE stream_server.losses; DROP TABLE stream_server.journal",
    "functions of ours dropped": "DROP FUNCTION stream_server.triggers()",
    "schema dropped": "DROP SCHEMA stream_server CASCADE",
}

UNNOTICED = frozenset({"nothing", "index broken", "functions of ours dropped"})
"""After these faults the journal is complete."""

COMMITTED = {
    "finished": {"success": MAPPED + 1},
    "value": '"other"',
    "cleared": ["queued", 1],
    "left": [0, 0, 0],
}


class OrmProcess:
    """A process that runs Airflow's models."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def work(self, url: str) -> Any:
        """Run all transactions in a database; return what was committed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{url}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        raise AssertionError(f"Airflow's process ended with {self._process.wait()}")


@pytest.fixture(scope="module")
def orm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrmProcess]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(TESTS),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "support.airflow_orm", str(MAPPED)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        yield OrmProcess(process)
        process.terminate()


@asynccontextmanager
async def count_dropped_writes(url: str) -> AsyncIterator[list[bool]]:
    """Yield a list that has, at the end, the number of dropped writes."""
    noticed: list[bool] = []
    yield noticed
    connection = await asyncpg.connect(url)
    try:
        noticed.append(
            bool(await connection.fetchval("SELECT last_value + is_called::integer FROM stream_server.losses"))
        )
    except asyncpg.PostgresError:
        noticed.append(True)
    finally:
        await connection.close()


@pytest.mark.parametrize("fault", FAULTS)
async def test_airflow_commits_despite_every_fault_of_the_journal(
    orm_process: OrmProcess, journal: str, airflow: AirflowSql, fault: str
) -> None:
    await airflow.connection.execute(FAULTS[fault])
    async with count_dropped_writes(journal) as noticed:
        assert await asyncio.to_thread(orm_process.work, journal) == {"committed": COMMITTED}
    assert noticed == [fault not in UNNOTICED]


async def test_airflow_commits_while_the_journal_is_locked(
    orm_process: OrmProcess, journal: str, airflow: AirflowSql
) -> None:
    async with airflow.connection.transaction(), count_dropped_writes(journal) as noticed:
        await airflow.connection.execute("LOCK TABLE stream_server.journal IN ACCESS EXCLUSIVE MODE")
        assert await asyncio.to_thread(orm_process.work, journal) == {"committed": COMMITTED}
    assert noticed == [True]


async def test_airflow_commits_while_the_functions_are_replaced(orm_process: OrmProcess, journal: str) -> None:
    working = asyncio.create_task(asyncio.to_thread(orm_process.work, journal))
    switched = 0
    while not working.done() or switched < 3:
        await disable_triggers(journal)
        await enable_triggers(journal)
        switched += 1
    assert await working == {"committed": COMMITTED}
    assert (await fetch_status(journal)).problems == []


async def test_the_role_is_no_superuser(airflow: AirflowSql) -> None:
    assert await airflow.connection.fetchval("SELECT NOT rolsuper FROM pg_roles WHERE rolname = current_user")


async def test_what_airflow_commits_is_in_the_journal(
    orm_process: OrmProcess, journal: str, airflow: AirflowSql
) -> None:
    await asyncio.to_thread(orm_process.work, journal)
    states = await airflow.connection.fetch(
        "SELECT state, count(*) FROM stream_server.journal WHERE kind = 'task' AND task_id = 'mapped' GROUP BY state"
    )
    # Created, and cleared; the deletion of the run covers its tasks.
    assert {row["state"]: row["count"] for row in states} == {
        None: 2 * MAPPED,
        "success": MAPPED,
        "running": MAPPED,
        "scheduled": MAPPED,
    }


async def test_clear_of_a_running_run_is_in_the_journal(airflow: AirflowSql, run: RunKey) -> None:
    # From Airflow 3.2 on, a clear counts in a run that goes on, too: its state stays.
    await airflow.set_run(run, "running")
    await airflow.connection.execute(
        "UPDATE dag_run SET clear_number = clear_number + 1 WHERE dag_id = $1 AND run_id = $2", *run
    )
    rows = await airflow.connection.fetch(
        "SELECT state, clear_number FROM stream_server.journal WHERE kind = 'run' AND dag_id = $1 AND run_id = $2"
        " ORDER BY id",
        *run,
    )
    assert [tuple(row) for row in rows][-2:] == [("running", 0), ("running", 1)]

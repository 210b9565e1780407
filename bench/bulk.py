"""The cost of the triggers for large statements and transactions of Airflow: `make bench-bulk`.

Airflow deletes many runs in one statement (`airflow db clean`), and clears many task instances in one transaction. Each
is measured without triggers, with ours, and with triggers that record each row in a subtransaction. Another transaction
stays open meanwhile, so that all snapshots have to deal with the transaction ids in use. The rate of reads is measured
on the primary and on a hot standby, before Airflow's transaction commits. PostgreSQL runs without fsync, and
without autovacuum, which takes transaction ids too.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from bench.testbed import raise_on_sigterm
from stream_server.cli.demo.postgres import SUPERUSER, EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from support.airflow_sql import AirflowSql
from support.postgres import create_database_with_journal, running_postgres
from support.standby import catch_up, running_standby

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

NONE, OURS, EACH_ROW = "no trigger", "ours", "a subtransaction for each row"
MODES = (NONE, OURS, EACH_ROW)

INSTANCE = "task_id = 't' AND dag_id = 'bench' AND run_id = 'run'"
CLEAR = f"UPDATE task_instance SET state = NULL, max_tries = max_tries + 1 WHERE {INSTANCE}"
WORKLOADS = {
    "runs deleted in one statement": "DELETE FROM dag_run WHERE run_id LIKE 'old%'",
    "instances cleared in one statement": CLEAR,
    "instances cleared in as many statements": "DO $$ BEGIN FOR n IN 0..{instances} - 1 LOOP"
    f" {CLEAR} AND map_index = n; END LOOP; END $$",
}

READ = f"\\set n random(0, 499)\nSELECT state FROM task_instance WHERE {INSTANCE} AND map_index = :n;\n"

TRIGGER_OF_EACH_ROW = """
CREATE OR REPLACE FUNCTION public.record_row() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
BEGIN
    INSERT INTO stream_server.journal (kind, dag_id, run_id, previous_state)
    VALUES ('task', OLD.dag_id, OLD.run_id, OLD.state);
    PERFORM stream_server.ring();
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
CREATE TRIGGER record_row AFTER DELETE ON dag_run FOR EACH ROW EXECUTE FUNCTION public.record_row();
CREATE TRIGGER record_row AFTER UPDATE ON task_instance FOR EACH ROW EXECUTE FUNCTION public.record_row();
"""
NO_TRIGGER_OF_EACH_ROW = """
DROP TRIGGER IF EXISTS record_row ON dag_run;
DROP TRIGGER IF EXISTS record_row ON task_instance;
"""

MOST_IDS_OF_A_STATEMENT = 2
LEAST_RATE_OF_READS = 0.9


class Measured(NamedTuple):
    """Figures of one of Airflow's transactions.

    Attributes:
        seconds: Its duration.
        ids: Transaction ids that it used.
        lookups: Pages of pg_subtrans that were looked up while it was open.
        reads: Reads per second on the primary, while it was open.
        standby_reads: The same on the standby.
    """

    seconds: float
    ids: int
    lookups: int
    reads: float
    standby_reads: float


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    parser = argparse.ArgumentParser(prog="bench-bulk", description=__doc__)
    parser.add_argument("--runs", type=int, default=200_000, help="runs to delete (default: %(default)d)")
    parser.add_argument("--instances", type=int, default=10_000, help="instances to clear (default: %(default)d)")
    parser.add_argument("--seconds", type=int, default=5, help="length of the reads (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    options = parser.parse_args()
    with raise_on_sigterm(), running_postgres({"autovacuum": "off"}) as primary, running_standby(primary) as standby:
        found = uvloop.run(_measure_all(primary, standby, options))
    _show(found)
    print(json.dumps(_figures(found, options)))
    return 0


async def _measure_all(
    primary: EmbeddedPostgres, standby: EmbeddedPostgres, options: argparse.Namespace
) -> dict[str, dict[str, list[Measured]]]:
    database = await create_database_with_journal(primary)
    found: dict[str, dict[str, list[Measured]]] = {workload: {mode: [] for mode in MODES} for workload in WORKLOADS}
    async with AirflowSql.open(primary.url(database)) as airflow:
        await airflow.trigger(RunKey("bench", "run"), await airflow.add_dag("bench", {"t": []}), [])
        admin = await asyncpg.connect(primary.url(database, SUPERUSER))
        with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
            script = _write_script(Path(folder))
            urls = [primary.url(database), standby.url(database)]
            for number in range(1, options.rounds + 1):
                print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
                for workload, statement in WORKLOADS.items():
                    for mode in MODES:
                        await _prepare(admin, primary.url(database), mode, options)
                        catch_up(primary, standby)
                        readers = _Readers(pool, urls, script, options.seconds)
                        text = statement.replace("{instances}", str(options.instances))
                        found[workload][mode].append(await _measure(airflow.connection, admin, readers, text))
        await admin.close()
    return found


def _write_script(folder: Path) -> Path:
    script = folder / "read.sql"
    script.write_text(READ)
    return script


async def _prepare(admin: Connection, url: str, mode: str, options: argparse.Namespace) -> None:
    """Write the rows that Airflow's transaction changes, without triggers, and set the triggers to a mode."""
    await admin.execute(
        "SET session_replication_role = replica; DELETE FROM dag_run WHERE run_id LIKE 'old%';"
        " DELETE FROM task_instance; TRUNCATE stream_server.journal;"
        " INSERT INTO dag_run (dag_id, run_id, run_type, run_after, state) SELECT 'bench', 'old' || n, 'manual', now(),"
        f" 'success' FROM generate_series(1, {options.runs}) AS n;"
        " INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots,"
        " state) SELECT gen_random_uuid(), 't', 'bench', 'run', n, 1, 0, 'default_pool', 1, 'success'"
        f" FROM generate_series(0, {options.instances} - 1) AS n; RESET session_replication_role;"
    )
    await admin.execute("VACUUM ANALYZE dag_run")
    await admin.execute("VACUUM ANALYZE task_instance")
    await install_journal(url, "public", lock_timeout=5, attempts=3)
    await admin.execute(NO_TRIGGER_OF_EACH_ROW)
    if mode != OURS:
        for row in await admin.fetch("SELECT table_name, trigger_name FROM stream_server.triggers()"):
            await admin.execute(f"DROP TRIGGER {row['trigger_name']} ON {row['table_name']}")
    if mode == EACH_ROW:
        await admin.execute(TRIGGER_OF_EACH_ROW)


class _Readers:
    """Reads by primary key on several servers at the same time."""

    def __init__(self, pool: ThreadPoolExecutor, urls: Sequence[str], script: Path, seconds: int) -> None:
        self._pool, self._urls, self._script, self._seconds = pool, urls, script, seconds

    def read(self) -> list[float]:
        """Return the reads per second on each server."""
        return list(self._pool.map(self._read_one, self._urls))

    def _read_one(self, url: str) -> float:
        program = EmbeddedPostgres(Path("unused")).installation.program_path("pgbench")
        options = ["--no-vacuum", "--protocol=prepared", "--client=2", f"--time={self._seconds}"]
        done = subprocess.run(
            [program, *options, f"--file={self._script}", url], capture_output=True, text=True, check=True
        )
        rate = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        assert rate is not None, done.stdout
        return float(rate[1])


async def _measure(session: Connection, admin: Connection, readers: _Readers, statement: str) -> Measured:
    holder = admin.transaction()
    await holder.start()
    before = await _fetch_next_id(admin)
    lookups = await _fetch_lookups(session)
    transaction = session.transaction()
    await transaction.start()
    began = time.perf_counter()
    await session.execute(statement)
    seconds = time.perf_counter() - began
    reads, standby_reads = readers.read()
    await transaction.commit()
    lookups = await _fetch_lookups(session) - lookups
    await holder.rollback()
    # One is that of the call itself.
    return Measured(seconds, await _fetch_next_id(admin) - before - 1, lookups, reads, standby_reads)


async def _fetch_next_id(connection: Connection) -> int:
    return int(await connection.fetchval("SELECT pg_current_xact_id()::text"))


async def _fetch_lookups(connection: Connection) -> int:
    """Return how many pages of pg_subtrans were looked up. Its name has changed in PostgreSQL 17."""
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    return int(
        await connection.fetchval(
            "SELECT sum(blks_hit + blks_read) FROM pg_stat_slru WHERE name IN ('Subtrans', 'subtransaction')"
        )
    )


def _median(found: list[Measured], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in found))


def _ratio(found: dict[str, list[Measured]], mode: str, name: str) -> float:
    ratios = [getattr(one, name) / getattr(base, name) for one, base in zip(found[mode], found[NONE], strict=True)]
    return float(statistics.median(ratios))


def _show(found: dict[str, dict[str, list[Measured]]]) -> None:
    table = Table(title="Large transactions of Airflow, and reads while they are open", title_justify="left")
    for column in ("workload", "triggers", "seconds", "transaction ids", "lookups in pg_subtrans"):
        table.add_column(column)
    table.add_column("ratio of reads: primary, standby")
    for workload, modes in found.items():
        for mode, measured in modes.items():
            ratios = f"{_ratio(modes, mode, 'reads'):.2f}  {_ratio(modes, mode, 'standby_reads'):.2f}"
            figures = (f"{_median(measured, 'seconds'):.2f}", f"{_median(measured, 'ids'):.0f}")
            table.add_row(workload, mode, *figures, f"{_median(measured, 'lookups'):.0f}", ratios)
    Console(width=max(130, Console().width)).print(table)


def _figures(found: dict[str, dict[str, list[Measured]]], options: argparse.Namespace) -> dict[str, object]:
    misses = []
    figures: dict[str, dict[str, object]] = {}
    for workload, modes in found.items():
        figures[workload] = {
            mode: {
                "seconds": round(_median(measured, "seconds"), 3),
                "duration_ratio": round(_ratio(modes, mode, "seconds"), 2),
                "transaction_ids": _median(measured, "ids"),
                "subtrans_lookups": _median(measured, "lookups"),
                "reads_ratio": round(_ratio(modes, mode, "reads"), 3),
                "standby_reads_ratio": round(_ratio(modes, mode, "standby_reads"), 3),
            }
            for mode, measured in modes.items()
        }
        ids = _median(modes[OURS], "ids")
        if "one statement" in workload and ids > MOST_IDS_OF_A_STATEMENT:
            misses.append(f"{workload}: {ids:.0f} transaction ids, not {MOST_IDS_OF_A_STATEMENT}")
        misses += [
            f"{workload}: {_ratio(modes, OURS, name):.2f} of the {name}, not {LEAST_RATE_OF_READS}"
            for name in ("reads", "standby_reads")
            if _ratio(modes, OURS, name) < LEAST_RATE_OF_READS
        ]
    return {"benchmark": "bulk", "rounds": options.rounds, "runs": options.runs, "figures": figures, "misses": misses}


if __name__ == "__main__":
    sys.exit(main())

"""The cost of the triggers for Airflow's migration to tries as rows: `make bench-migration`.

`airflow db migrate` from the installed Airflow to 3.4 on a database with many task instances and their history: in turn
without our triggers, with ours, and with ours disabled before, as docs/operations.md advises. Each migrates a copy of
the same database. The figure is the CPU time of PostgreSQL's sessions: neither the start of Airflow's command nor the
disk dilutes it, and other load of the machine hardly changes it. The migration must write no row into the journal, and
drop none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from bench.testbed import raise_on_sigterm
from matrix.environments import UPCOMING, environment_python
from stream_server.cli.demo import airflow, template_cluster
from stream_server.cli.demo.postgres import SUPERUSER, EmbeddedPostgres
from stream_server.journal.installer import disable_triggers, uninstall_journal
from support.airflow_sql import AirflowSql
from support.postgres import DATA_DIR, create_database_with_journal, drop_database, running_postgres

NONE, OURS, DISABLED = "no trigger", "ours", "ours, disabled"
MODES = (NONE, OURS, DISABLED)

MAX_RATIO = 1.10
INSTANCES_OF_RUN = 100
COMMAND_SECONDS = 3600.0

RUNS = """
INSERT INTO dag_run (dag_id, run_id, run_type, run_after, state, queued_at, start_date, end_date,
                     created_dag_version_id)
SELECT 'bench', 'run ' || n, 'manual', now(), 'success', now(), now(), now(), $2
FROM generate_series(0, ($1::integer - 1) / $3::integer) AS n
"""

INSTANCES = """
INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots, state,
                           start_date, end_date, dag_version_id)
SELECT gen_random_uuid(), 't' || n % $3::integer, 'bench', 'run ' || n / $3, -1, CASE n % 4 WHEN 0 THEN 2 ELSE 1 END, 1,
       'default_pool', 1,
       CASE WHEN n % 50 = 1 THEN NULL WHEN n % 200 = 3 THEN 'up_for_retry' WHEN n % 20 = 5 THEN 'failed'
            ELSE 'success' END,
       now(), now(), $2
FROM generate_series(0, $1::integer - 1) AS n
"""
"""A quarter of them is in the second try, some were cleared, and some wait for a retry."""

HISTORY = """
INSERT INTO task_instance_history (task_instance_id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool,
                                   pool_slots, state, start_date, end_date, dag_version_id)
SELECT gen_random_uuid(), task_id, dag_id, run_id, map_index, 1, max_tries, pool, pool_slots, 'failed', now(), now(),
       dag_version_id
FROM task_instance WHERE dag_id = 'bench' AND (try_number = 2 OR state IS NULL OR state = 'up_for_retry')
"""

VALUES = """
INSERT INTO xcom (dag_run_id, task_id, map_index, key, dag_id, run_id, value, timestamp)
SELECT r.id, t.task_id, t.map_index, 'return_value', t.dag_id, t.run_id, '"a value of some length"', now()
FROM task_instance AS t JOIN dag_run AS r USING (dag_id, run_id) WHERE t.dag_id = 'bench' AND t.state = 'success'
"""

LENGTHS = """
INSERT INTO task_map (dag_id, task_id, run_id, map_index, length)
SELECT dag_id, task_id, run_id, map_index, 3 FROM xcom WHERE dag_id = 'bench' AND task_id LIKE '%0'
"""
"""The migration updates the values of these tasks, which others are mapped over."""


class Measured(NamedTuple):
    """Figures of one migration."""

    seconds: float
    """Duration of the command."""

    cpu_seconds: float
    """CPU time of the sessions of PostgreSQL."""


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    parser = argparse.ArgumentParser(prog="bench-migration", description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000, help="task instances (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    options = parser.parse_args()
    # The clusters of tests are in memory, which has no room for several copies.
    settings = {"autovacuum": "off", "max_wal_size": "4GB", "shared_buffers": "1GB", "maintenance_work_mem": "256MB"}
    with raise_on_sigterm(), running_postgres(settings, in_memory=False) as postgres, TemporaryDirectory() as home:
        environment = airflow.airflow_environment(
            Path(home), postgres.url(), port=0, dags=[], bytecode=template_cluster.bytecode_dir(DATA_DIR / "cache")
        )
        measured, misses = uvloop.run(_measure_all(postgres, environment, options.instances, options.rounds))
    _show(measured, options.instances)
    print(json.dumps(_figures(measured, misses, options)))
    return 0


async def _measure_all(
    postgres: EmbeddedPostgres, environment: Mapping[str, str], instances: int, rounds: int
) -> tuple[dict[str, list[Measured]], list[str]]:
    source = await create_database_with_journal(postgres)
    await _fill(postgres, source, instances)
    # Airflow's modules are compiled once, and the environment may be built first.
    await _migrate(postgres, environment, await create_database_with_journal(postgres))
    measured: dict[str, list[Measured]] = {mode: [] for mode in MODES}
    misses: list[str] = []
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        for mode in MODES:
            copy = f"copy_{number}_{MODES.index(mode)}"
            postgres.execute(
                f"CREATE DATABASE {copy} TEMPLATE {source} OWNER {template_cluster.ROLE} STRATEGY FILE_COPY"
            )
            await _set_mode(postgres.url(copy), mode)
            losses = 0 if mode == NONE else await _count_losses(postgres.url(copy))
            postgres.execute("CHECKPOINT")
            measured[mode].append(await _migrate(postgres, environment, copy))
            if mode != NONE:
                misses += await _find_false_rows(postgres.url(copy), mode, losses)
            drop_database(postgres, copy)
    return measured, misses


async def _fill(postgres: EmbeddedPostgres, database: str, instances: int) -> None:
    """Write runs, task instances in all of which tries and values were recorded, without triggers and foreign keys."""
    async with AirflowSql.open(postgres.url(database)) as session:
        version = await session.add_dag("bench", {"t0": []})
    admin = await asyncpg.connect(postgres.url(database, SUPERUSER))
    try:
        await admin.execute("SET session_replication_role = replica; SET synchronous_commit = off")
        for statement in (RUNS, INSTANCES):
            await admin.execute(statement, instances, version, INSTANCES_OF_RUN, timeout=COMMAND_SECONDS)
        for statement in (HISTORY, VALUES, LENGTHS, "TRUNCATE stream_server.journal", "VACUUM ANALYZE"):
            await admin.execute(statement, timeout=COMMAND_SECONDS)
    finally:
        await admin.close()


async def _set_mode(url: str, mode: str) -> None:
    if mode == NONE:
        await uninstall_journal(url, lock_timeout=5, attempts=3)
    elif mode == DISABLED:
        await disable_triggers(url)


async def _migrate(postgres: EmbeddedPostgres, environment: Mapping[str, str], database: str) -> Measured:
    before, began = _cpu_seconds(postgres), time.perf_counter()
    await asyncio.to_thread(_run_migration, environment, postgres.url(database))
    seconds = time.perf_counter() - began
    return Measured(seconds, _cpu_seconds(postgres) - before)


def _cpu_seconds(postgres: EmbeddedPostgres) -> float:
    """Return the CPU time of all sessions that have ended."""
    # The server process ends a session's process, and waits for it, before it starts that of the next session.
    postgres.execute("SELECT 1")
    times = psutil.Process(postgres.pid).cpu_times()
    return float(times.children_user + times.children_system)


def _run_migration(environment: Mapping[str, str], url: str) -> None:
    done = subprocess.run(
        [environment_python(UPCOMING), "-m", "airflow", "db", "migrate"],
        env={
            **environment,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url.replace("postgresql://", "postgresql+psycopg2://"),
        },
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-5000:]


async def _count_losses(url: str) -> int:
    """Return how many writes were dropped, or announced as such: so that servers check the disabled triggers."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT last_value + is_called::integer FROM stream_server.losses"))
    finally:
        await connection.close()


async def _find_false_rows(url: str, mode: str, losses: int) -> list[str]:
    """Return what a migration has written into the journal, or dropped since there were `losses`."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetchval("SELECT count(*) FROM stream_server.journal")
    finally:
        await connection.close()
    dropped = await _count_losses(url) - losses
    return [f"{mode}: {rows} rows in the journal, {dropped} dropped, not 0"] if rows or dropped else []


def _ratio(measured: Mapping[str, list[Measured]], mode: str, name: str) -> float:
    """Return the median ratio to the migration without triggers in the same round."""
    pairs = zip(measured[mode], measured[NONE], strict=True)
    return float(statistics.median(getattr(one, name) / getattr(base, name) for one, base in pairs))


def _median(measured: list[Measured], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in measured))


def _show(measured: Mapping[str, list[Measured]], instances: int) -> None:
    title = f"airflow db migrate to {UPCOMING}, {instances} task instances"
    table = Table("triggers", "seconds", "CPU seconds of PostgreSQL", "ratio", title=title, title_justify="left")
    for mode, found in measured.items():
        seconds = (f"{_median(found, name):.1f}" for name in Measured._fields)
        table.add_row(mode, *seconds, f"{_ratio(measured, mode, 'cpu_seconds'):.3f}")
    Console(width=max(110, Console().width)).print(table)


def _figures(
    measured: Mapping[str, list[Measured]], misses: list[str], options: argparse.Namespace
) -> dict[str, object]:
    ratios = {mode: round(_ratio(measured, mode, "cpu_seconds"), 3) for mode in (OURS, DISABLED)}
    return {
        "benchmark": "migration",
        "version": UPCOMING,
        "instances": options.instances,
        "rounds": options.rounds,
        "seconds": {mode: round(_median(found, "seconds"), 1) for mode, found in measured.items()},
        "cpu_seconds": {mode: round(_median(found, "cpu_seconds"), 1) for mode, found in measured.items()},
        "ratio": ratios,
        "misses": [
            *misses,
            *(
                f"{mode}: {ratio} of the time without triggers, more than {MAX_RATIO}"
                for mode, ratio in ratios.items()
                if ratio > MAX_RATIO
            ),
        ],
    }


if __name__ == "__main__":
    sys.exit(main())

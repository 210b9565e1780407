"""The cost of the journal for Airflow's commits: `make bench-journal`.

pgbench writes as Airflow does, on Airflow's schema with real durability, in turn without our triggers, with triggers
that only write the journal (`stream_server.doorbell` off), with a NOTIFY in every transaction, and with ours,
which notify idle tails only. A server follows on the same cores. Each figure is a ratio to the rate without
triggers in the same round, and the rounds are interleaved, so that changes of the machine's speed affect all. With
`--busy`, other work uses part of the cores, as where Airflow's tasks run beside its database. `--targets-only` measures
what the targets need, in a third of the time: with one server, without triggers and with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from bench.testbed import Testbed, raise_on_sigterm, running_testbed
from stream_server.cli.demo.postgres_install import PostgresInstallation
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from support.airflow_sql import AirflowSql

KEY = RunKey("bench", "run")
ROWS = 500
"""Task instances that belong to one writer, so that writers wait for commits and not for each other."""

WRITERS = (1, 8, 32)
LISTENERS = (1, 4, 16)

INSTANCE = "dag_id = 'bench' AND run_id = 'run' AND task_id = 't'"
INDEXES = ("map_index", "region_index")
"""The column with the index of a task instance: up to Airflow 3.3, and from 3.4 on."""

FLIP = "state = CASE state WHEN 'queued' THEN 'running' ELSE 'queued' END, updated_at = now()"
PICK = f"\\set n random(0, {ROWS - 1}) + :client_id * {ROWS}\n"
WORKLOADS = {
    "heartbeat": f"{PICK}UPDATE task_instance SET last_heartbeat_at = now(), updated_at = now()"
    f" WHERE {INSTANCE} AND {{index}} = :n;\n",
    "transition": f"{PICK}UPDATE task_instance SET {FLIP} WHERE {INSTANCE} AND {{index}} = :n;\n",
    "500 rows": f"\\set first :client_id * {ROWS}\nUPDATE task_instance SET {FLIP}"
    f" WHERE {INSTANCE} AND {{index}} BETWEEN :first AND :first + {ROWS - 1};\n",
}

NONE, JOURNAL, ALWAYS, IDLE_NOTIFY = "no trigger", "journal", "a NOTIFY each", "journal and NOTIFY"
MODES = (NONE, JOURNAL, ALWAYS, IDLE_NOTIFY)

FIGURES = {"journal": JOURNAL, "a NOTIFY each": ALWAYS, "notify idle tails": IDLE_NOTIFY}
"""Ratios in the figures."""

TARGETS = {
    **{("heartbeat", writers): 0.98 for writers in WRITERS},
    **{("transition", writers): least for writers, least in zip(WRITERS, (0.90, 0.85, 0.75), strict=True)},
    **{("500 rows", writers): 0.85 for writers in WRITERS},
}
"""Least ratio to the rate without triggers, with notifications of idle tails."""


FOLLOWING = """
import asyncio, sys
from support import lossless_tails
lossless_tails.CHECK_SECONDS = 3600.0
lossless_tails.POLL_SECONDS = 2.0
from support.lossless_tails import make_tail
asyncio.run(make_tail(sys.argv[1], lambda why, *_: print(why, flush=True) if why else None, None).run())
"""
"""A program that follows the journal, as another server does; it prints a line when it has started."""

SLEEPING = """
import asyncio, sys, asyncpg
from stream_server.journal.queries import load_queries
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    print(await connection.fetchval(load_queries("notify.sql")["go_idle"]), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
"""A program for which each transaction notifies, as for a tail that is always idle."""


class Case(NamedTuple):
    """One case to measure."""

    workload: str
    writers: int
    listeners: int = 1


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error."""
    options = _options()
    cases = [Case(workload, writers) for workload in WORKLOADS for writers in WRITERS]
    modes = (NONE, IDLE_NOTIFY) if options.targets_only else MODES
    if not options.targets_only:
        cases += [Case("transition", 8, listeners) for listeners in LISTENERS[1:]]
    cases = [case for case in cases if options.workload in {None, case.workload} and case.writers in options.writers]
    rates: dict[Case, dict[str, list[float]]] = {case: {mode: [] for mode in modes} for case in cases}
    # Missing triggers must not be restored.
    with (
        raise_on_sigterm(),
        running_testbed(check_interval="1h") as running,
        TemporaryDirectory() as folder,
        _busy_processes(options.busy),
    ):
        scripts = uvloop.run(prepare(running.database_url, max(options.writers)))
        files = {name: Path(folder, name.replace(" ", "_")) for name in scripts}
        for name, text in scripts.items():
            files[name].write_text(text)
        for number in range(1, options.rounds + 1):
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
            for case in cases:
                # The second of two measurements may find warmer caches: they take turns at being the first.
                for mode in modes if number % 2 else reversed(modes):
                    rates[case][mode].append(_rate(running, files[case.workload], case, mode, options.seconds))
    _show(rates)
    print(json.dumps(_figures(rates, options)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-journal", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="length of a measurement (default: %(default)d)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    parser.add_argument("--workload", choices=WORKLOADS, help="this one alone (default: all)")
    parser.add_argument("--writers", type=int, nargs="+", choices=WRITERS, default=WRITERS, help="(default: all)")
    parser.add_argument("--targets-only", action="store_true", help="only what the targets need, for a short run")
    parser.add_argument("--busy", type=int, default=0, help="other processes that need a core (default: %(default)d)")
    return parser.parse_args()


@contextmanager
def _busy_processes(processes: int) -> Iterator[None]:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


async def prepare(url: str, writers: int) -> dict[str, str]:
    """Write a task instance for each row that a writer can pick. Return the scripts of `WORKLOADS` for these tables."""
    async with AirflowSql.open(url) as airflow:
        version = await airflow.add_dag(KEY.dag_id, {"t": []})
        await airflow.trigger(KEY, version, [])
        index = await airflow.connection.fetchval(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'task_instance'::regclass AND attname = ANY ($1)",
            INDEXES,
        )
        await airflow.connection.execute(
            f"INSERT INTO task_instance (id, task_id, dag_id, run_id, {index}, try_number, max_tries, pool,"
            " pool_slots, dag_version_id, state) SELECT gen_random_uuid(), 't', $1, $2, n, 1, 0, 'default_pool', 1,"
            " $3, 'queued' FROM generate_series(0, $4::integer - 1) AS n",
            *KEY,
            version,
            writers * ROWS,
        )
        await airflow.connection.execute("VACUUM ANALYZE task_instance")
    return {workload: text.replace("{index}", index) for workload, text in WORKLOADS.items()}


def _rate(running: Testbed, script: Path, case: Case, mode: str, seconds: int) -> float:
    """Return the transactions per second that pgbench commits."""
    with ExitStack() as others:
        for _ in range(case.listeners - 1):
            others.enter_context(_running_program(FOLLOWING, running.database_url))
        uvloop.run(_set_mode(running.database_url, mode))
        if mode == ALWAYS:
            others.enter_context(_running_program(SLEEPING, running.database_url))
        done = subprocess.run(
            [
                *(PostgresInstallation.find().program_path("pgbench"), "--no-vacuum", "--protocol=prepared"),
                *(f"--client={case.writers}", "--jobs=1", f"--time={seconds}", f"--file={script}"),
                running.database_url,
            ],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PGOPTIONS": f"-c stream_server.doorbell={'off' if mode == JOURNAL else 'on'}"},
        )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return float(found[1])


async def _set_mode(url: str, mode: str) -> None:
    """Set the triggers to a mode; empty the journal, and vacuum the table."""
    await install_journal(url, "public", lock_timeout=5, attempts=3)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("TRUNCATE stream_server.journal")
        await connection.execute("VACUUM task_instance")
        if mode == NONE:
            for row in await connection.fetch("SELECT table_name, trigger_name FROM stream_server.triggers()"):
                await connection.execute(f"DROP TRIGGER IF EXISTS {row['trigger_name']} ON {row['table_name']}")
    finally:
        await connection.close()


@contextmanager
def _running_program(program: str, url: str) -> Iterator[None]:
    """Run a program; yields when it has printed that it started."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    command = [sys.executable, "-c", program, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "it has begun"
            yield
        finally:
            process.terminate()


def _ratio(rates: dict[str, list[float]], mode: str) -> float:
    return statistics.median(one / base for one, base in zip(rates[mode], rates[NONE], strict=True))


def _latency(case: Case, rates: list[float]) -> float:
    """Return the average milliseconds of a transaction: each writer always has one open."""
    return 1000 * case.writers / statistics.median(rates)


def _show(rates: dict[Case, dict[str, list[float]]]) -> None:
    title = "Transactions per second, their ratio to those without triggers, and milliseconds for each"
    table = Table(title=title, title_justify="left")
    modes = [mode for mode in MODES if all(mode in measured for measured in rates.values())]
    for column in ("workload", "writers", "servers listening", *modes):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for case, measured in rates.items():
        cells = [f"{statistics.median(measured[NONE]):.0f}  {_latency(case, measured[NONE]):.1f}"]
        cells += [
            f"{statistics.median(measured[mode]):.0f}  {_ratio(measured, mode):.2f}"
            f"  {_latency(case, measured[mode]):.1f}"
            for mode in modes[1:]
        ]
        table.add_row(case.workload, str(case.writers), str(case.listeners), *cells)
    Console(width=max(110, Console().width)).print(table)


def _figures(rates: dict[Case, dict[str, list[float]]], options: argparse.Namespace) -> dict[str, object]:
    ratios = {
        f"{case.workload}, {case.writers} writers, {case.listeners} listening": {
            "tps": round(statistics.median(measured[NONE])),
            **{name: round(_ratio(measured, mode), 3) for name, mode in FIGURES.items() if mode in measured},
            "latency_ms": {mode: round(_latency(case, found), 2) for mode, found in measured.items()},
        }
        for case, measured in rates.items()
    }
    reached = {target: _ratio(rates[Case(*target)], IDLE_NOTIFY) for target in TARGETS if Case(*target) in rates}
    misses = [
        f"{workload}, {writers} writers: {reached[workload, writers]:.2f} of the rate without triggers, not {least}"
        for (workload, writers), least in TARGETS.items()
        if reached.get((workload, writers), least) < least
    ]
    return {
        "benchmark": "journal",
        "rounds": options.rounds,
        "seconds": options.seconds,
        "busy": options.busy,
        "ratios": ratios,
        "misses": misses,
    }


if __name__ == "__main__":
    sys.exit(main())

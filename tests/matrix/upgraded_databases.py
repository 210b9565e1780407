"""Databases upgraded from Airflow 3.0, one version after the other, with the journal installed."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from matrix.airflow_processes import NEWEST, AirflowProcesses
from matrix.environments import HAS_UPCOMING, UPCOMING
from matrix.versioned_sql import VersionedSql, clear_try_numbers, fill_tables
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.template_cluster import ROLE
from stream_server.journal.installer import fetch_status, install_journal
from support.postgres import drop_database

HAS_FIRST = sys.version_info < (3, 13)
"""Whether this Python can run Airflow 3.0."""

VERSIONS = (*(("3.0.6",) if HAS_FIRST else ()), "3.1.8", "3.2.2", NEWEST)
DATABASE_VERSIONS = (*VERSIONS, *((UPCOMING,) if HAS_UPCOMING else ()))
"""Versions of which the tables are tested: also a pre-release, if this Python can run it."""

COUNTS = (
    *("dag", "dag_version", "serialized_dag", "dag_run", "task_instance", "task_instance_history", "xcom"),
    "stream_server.journal",
)
"""Tables whose rows a migration must keep. It must add no rows to the journal."""


@dataclass(frozen=True)
class VersionDatabase:
    """A database at one version, after `airflow db migrate` and `install`."""

    database: str
    epoch: str
    problems: list[str]
    """Problems of the journal before `install` completed it."""

    rows: dict[str, int]
    """Rows by table, before `install` completed the journal."""


class UpgradedDatabases:
    """Creates the database of a version when it is first needed; tests get copies.

    Args:
        postgres: The cluster with the databases.
        processes: Run Airflow's commands.
    """

    def __init__(self, postgres: EmbeddedPostgres, processes: AirflowProcesses) -> None:
        self._postgres = postgres
        self._processes = processes
        self._databases: dict[str, VersionDatabase] = {}
        self._copies: list[str] = []

    async def database_at(self, version: str) -> VersionDatabase:
        """Return the database of a version, which must not be changed."""
        if version not in self._databases:
            database = f"upgraded_{version.replace('.', '_')}"
            index = DATABASE_VERSIONS.index(version)
            drop_database(self._postgres, database)  # the remains of a failed attempt, so that the failure occurs again
            if index == 0:
                self._postgres.execute(f"CREATE DATABASE {database} OWNER {ROLE}")
            else:
                below = await self.database_at(DATABASE_VERSIONS[index - 1])
                self._copy(below.database, database)
            self._databases[version] = await self._make(version, self._postgres.url(database), database)
        return self._databases[version]

    async def copy_of(self, version: str) -> str:
        """Return the URL of a copy of a version's database."""
        source = await self.database_at(version)
        name = f"copy_{len(self._copies) + 1}"
        self._copies.append(name)
        self._copy(source.database, name)
        return self._postgres.url(name)

    def drop_copies(self) -> None:
        """Drop all copies."""
        for name in self._copies:
            drop_database(self._postgres, name)
        self._copies.clear()

    async def airflow_db(self, version: str, url: str, *arguments: str) -> None:
        """Run `airflow db …` of a version, without blocking the event loop.

        Raises:
            AssertionError: It failed; the message ends with its output.
        """
        await self.run(version, url, None, "db", *arguments)

    async def run(self, version: str, url: str, program: Path | None, *arguments: str, **settings: str) -> None:
        """Run a program with a version of Airflow on a database, without blocking the event loop.

        Args:
            version: Version of Airflow.
            url: Database URL.
            program: As for `AirflowProcesses.run`.
            arguments: Of the program.
            settings: Further environment variables.

        Raises:
            AssertionError: It failed; the message ends with its output.
        """
        settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = sqlalchemy_url(url)
        await asyncio.to_thread(self._processes.run, version, program, *arguments, **settings)

    async def _make(self, version: str, url: str, database: str) -> VersionDatabase:
        await self.airflow_db(version, url, "migrate")
        if version == VERSIONS[0]:
            await install_now(url)
            async with VersionedSql.open(url) as session:
                await fill_tables(session)
                await clear_try_numbers(session)
        found = await fetch_status(url)
        assert found.epoch is not None, "the journal is installed"
        async with VersionedSql.open(url) as session:
            rows = {table: await session.count(table) for table in COUNTS}
        await install_now(url)
        return VersionDatabase(database, found.epoch, found.problems, rows)

    def _copy(self, source: str, target: str) -> None:
        self._postgres.execute(f"CREATE DATABASE {target} TEMPLATE {source} OWNER {ROLE}")


def sqlalchemy_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


async def install_now(url: str) -> None:
    await install_journal(url, "public", lock_timeout=5, attempts=1)

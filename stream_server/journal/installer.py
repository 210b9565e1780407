"""Putting the journal and its triggers into Airflow's database, taking them out, and telling how they stand."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import asyncpg

from stream_server.errors import InstallError, JournalMissing
from stream_server.journal.connection import AnyConnection, connect, map_postgres_errors
from stream_server.journal.privileges import build_grants_sql
from stream_server.journal.queries import (
    fill_placeholders,
    load_migrations,
    load_queries,
    load_sql,
    quote_identifier,
    quote_literal,
)

SCHEMA_VERSION = 3
"""Version of the journal's schema that this package makes: that of its last migration."""

OLDEST_READABLE_SCHEMA = 1
"""Oldest version of the schema with which this server works: at least the one before, for the time of a deployment."""

OLDEST_COMPATIBLE_SERVER = 1
"""Version of the oldest server that works with the schema that this package makes: at least the one before, too."""

SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS = 2.0, 10
"""As for install: switching on puts back triggers that are missing."""

_REQUIRED_TABLES = ("task_instance", "dag_run", "xcom")


@dataclass(frozen=True)
class TriggerStatus:
    """One trigger that should stand."""

    table: str
    trigger: str
    installed: bool
    enabled: bool
    current: bool
    """Whether it is as this version makes it."""

    @property
    def is_working(self) -> bool:
        """Whether it does its work."""
        return self.installed and self.enabled and self.current


@dataclass(frozen=True)
class JournalStatus:
    """How the journal stands."""

    installed: bool
    version: int | None = None
    expected_version: int = SCHEMA_VERSION
    oldest_server: int = 0
    """Servers that expect an older version than this do not understand the journal."""

    epoch: str | None = None
    airflow_schema: str | None = None
    enabled: bool = True
    """Whether the triggers are switched on."""

    losses: int = 0
    """How often they could not write something down since the journal was installed."""

    triggers: list[TriggerStatus] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words; empty if all is well."""
        if not self.installed:
            return ["the journal is not installed; run `stream-server install`"]
        found = []
        if (mismatch := _describe_mismatch(self.version, self.oldest_server)) is not None:
            found.append(mismatch)
        if not self.enabled:
            found.append("the triggers are switched off; run `stream-server triggers enable`")
        for trigger in self.triggers:
            name = f"trigger {trigger.trigger} on {trigger.table}"
            if not trigger.installed:
                found.append(f"{name} is missing")
            elif not trigger.current:
                found.append(f"{name} is not as this version makes it")
            elif not trigger.enabled:
                found.append(f"{name} is disabled")
        return found

    @property
    def upgrade_due(self) -> bool:
        """Whether install would make it newer. Streams are whole meanwhile."""
        return self.version is not None and self.version < self.expected_version

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {"well": not self.problems, "problems": self.problems, **asdict(self)}


def build_install_sql(airflow_schema: str, reader: str | None = None) -> str:
    """Return the script that makes, upgrades or completes the journal and its triggers; and lets a role serve."""
    migrations = "".join(_build_migration_step(version, text) for version, text in load_migrations().items())
    grants = "" if reader is None else f"\n{build_grants_sql(reader, airflow_schema)}"
    script = fill_placeholders(
        f"{load_sql('begin.sql')}\n{migrations}{load_sql('functions.sql')}\n{load_sql('services.sql')}\n{load_sql('finish.sql')}",
        version=str(SCHEMA_VERSION),
        oldest_server=str(OLDEST_COMPATIBLE_SERVER),
        airflow=quote_literal(airflow_schema),
    )
    return script + grants


def _build_migration_step(version: int, text: str) -> str:
    """Return a statement that migrates to a version, unless it stands already when the script begins."""
    assert "$migration$" not in text, "it ends the quotation"
    return (
        f"DO $step$\nBEGIN\nIF current_setting('stream_server.standing')::integer < {version} THEN"
        f" EXECUTE $migration$\n{text}$migration$; END IF;\nEND\n$step$;\n\n"
    )


def build_uninstall_sql() -> str:
    """Return the script that removes everything that `install_sql` makes."""
    return load_sql("uninstall.sql")


async def install_journal(
    url: str, airflow_schema: str, *, lock_timeout: float, attempts: int, reader: str | None = None
) -> None:
    """Make or complete the journal and its triggers, in one transaction.

    Args:
        url: Database URL; the role may create a schema, and triggers on Airflow's tables.
        airflow_schema: Schema that holds Airflow's tables.
        reader: Role that is given what `stream-server serve` needs.
        lock_timeout: Seconds that each attempt may wait for a lock on one of Airflow's tables. Airflow's own statements
            queue behind us for that long at most.
        attempts: How often to try.

    Raises:
        InstallError: It could not be done; the database is as it was before.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        await _require_airflow_tables(connection, airflow_schema)
        await _run_with_retries(connection, build_install_sql(airflow_schema, reader), lock_timeout, attempts)


async def uninstall_journal(url: str, *, lock_timeout: float, attempts: int) -> None:
    """Remove the triggers, the journal and all else that install has made. Errors as for `install`."""
    async with _connected(url) as connection:
        await _run_with_retries(connection, build_uninstall_sql(), lock_timeout, attempts)


async def disable_triggers(url: str) -> None:
    """Switch the triggers off, at once: no lock on Airflow's tables is needed.

    Raises:
        InstallError: The role does not own the journal.
        JournalMissing: The journal is not installed.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        await _run_with_retries(connection, "SELECT stream_server.switch_off()", SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS)


async def enable_triggers(url: str) -> None:
    """Switch the triggers on, and put back those that are missing. Errors as for `disable`."""
    async with _connected(url) as connection:
        schema = (await read_status(connection)).airflow_schema
        assert schema is not None, "meta.airflow_schema is NOT NULL"
        await _run_with_retries(
            connection, load_sql("enable.sql") + build_install_sql(schema), SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS
        )


async def fetch_status(url: str) -> JournalStatus:
    """Tell how the journal stands.

    Raises:
        JournalForbidden: The role may not look.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        try:
            return await read_status(connection)
        except JournalMissing:
            return JournalStatus(installed=False)


async def read_status(connection: AnyConnection) -> JournalStatus:
    """Tell how the journal stands.

    Raises:
        JournalForbidden: The role may not look.
        JournalMissing: It is not installed, or not whole.
        JournalUnreachable: PostgreSQL does not answer.
    """
    with map_postgres_errors():
        meta = await connection.fetchrow(
            "SELECT version, oldest_server, epoch, airflow_schema, enabled, last_value + is_called::integer AS losses"
            " FROM stream_server.meta, stream_server.losses"
        )
        rows = await connection.fetch("SELECT * FROM stream_server.triggers()")
        await connection.fetch("SELECT FROM stream_server.journal LIMIT 1")
    if meta is None:
        raise JournalMissing("The journal is not whole; run `stream-server install`")
    return JournalStatus(
        installed=True,
        version=meta["version"],
        oldest_server=meta["oldest_server"],
        epoch=meta["epoch"],
        airflow_schema=meta["airflow_schema"],
        enabled=meta["enabled"],
        losses=meta["losses"],
        triggers=[
            TriggerStatus(
                table=row["table_name"],
                trigger=row["trigger_name"],
                installed=row["standing"] is not None,
                enabled=row["enabled"],
                current=row["standing"] == row["wanted"],
            )
            for row in rows
        ],
    )


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[AnyConnection]:
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _require_airflow_tables(connection: AnyConnection, schema: str) -> None:
    with map_postgres_errors():
        missing = [
            table
            for table in _REQUIRED_TABLES
            if await connection.fetchval("SELECT to_regclass($1)", f"{quote_identifier(schema)}.{table}") is None
        ]
    if missing:
        raise InstallError(
            f"Airflow's tables are not in schema {schema!r} of this database ({', '.join(missing)} missing);"
            " run `airflow db migrate` first, or name another schema with --airflow-schema"
        )


class _LockTimeout(Exception):
    """An attempt did not get its locks."""


async def _run_with_retries(connection: AnyConnection, script: str, lock_timeout: float, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            await _run_once(connection, script, lock_timeout)
        except _LockTimeout as error:
            if attempt == attempts:
                raise InstallError(
                    f"Airflow's tables were locked by other transactions in all of {attempts} attempts of"
                    f" {lock_timeout:g} s; nothing was changed. See pg_stat_activity for transactions that stay open"
                ) from error
            await anyio.sleep(random.uniform(0.5, 1.5) * lock_timeout)  # noqa: S311 # not for secrets
        else:
            return


async def _run_once(connection: AnyConnection, script: str, lock_timeout: float) -> None:
    with map_postgres_errors():
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = {int(lock_timeout * 1000)}")
                await connection.execute(script)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            raise _LockTimeout from error
        except asyncpg.RaiseError as error:
            raise InstallError(str(error)) from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise InstallError(
                f"The database role may not do that: {error}. See docs/operations.md, Roles, for what it needs"
            ) from error


async def load_queries_for(connection: AnyConnection) -> dict[str, str]:
    """Return the queries for the Airflow in this database.

    Raises:
        JournalMissing: The journal is not installed, or of another version.
    """
    with map_postgres_errors():
        meta = await connection.fetchrow("SELECT version, oldest_server, airflow_schema FROM stream_server.meta")
        mismatch = "it is empty" if meta is None else _describe_mismatch(meta["version"], meta["oldest_server"])
        if meta is None or mismatch is not None:
            raise JournalMissing(f"The journal can't be read: {mismatch}")
        return load_queries(airflow=quote_identifier(meta["airflow_schema"]))


def _describe_mismatch(version: int | None, oldest_server: int) -> str | None:
    """Tell why this program does not work with a journal, or `None` if it does."""
    if version is None or version < OLDEST_READABLE_SCHEMA:
        return (
            f"the journal has version {version}, this program needs {OLDEST_READABLE_SCHEMA};"
            " run `stream-server install`"
        )
    if oldest_server > SCHEMA_VERSION:
        return f"the journal has version {version}, which needs a newer stream-server; this one knows {SCHEMA_VERSION}"
    return None

"""Install, uninstall, disable and enable the journal and its triggers."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import asyncpg

from stream_server.errors import InstallError, JournalMissing
from stream_server.journal.airflow_tables import read_airflow_tables
from stream_server.journal.connection import (
    AnyConnection,
    DatabaseConnection,
    close_connection,
    connect,
    map_postgres_errors,
)
from stream_server.journal.installed_functions import build_functions_sql
from stream_server.journal.privileges import build_grants_sql
from stream_server.journal.queries import fill_placeholders, load_migrations, load_sql
from stream_server.journal.status import (
    OLDEST_COMPATIBLE_SERVER,
    SCHEMA_VERSION,
    JournalStatus,
    build_owner_query,
    read_status,
)

log = logging.getLogger(__name__)

SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS = 2.0, 10
"""Arguments of `install_journal` for enabling, which restores missing triggers, and for disabling."""


def build_install_sql(airflow_schema: str, reader: str | None = None) -> str:
    """Return the script that installs, upgrades or repairs the journal, and grants `reader` its privileges."""
    migrations = "".join(_build_migration_step(version, text) for version, text in load_migrations().items())
    functions = build_functions_sql(airflow_schema)
    script = fill_placeholders(
        "\n".join((load_sql("begin.sql"), migrations, functions, load_sql("finish.sql"))),
        version=str(SCHEMA_VERSION),
        oldest_server=str(OLDEST_COMPATIBLE_SERVER),
        owner_privileges=build_owner_query(airflow_schema),
    )
    return script if reader is None else f"{script}\n{build_grants_sql(reader, airflow_schema)}"


def _build_migration_step(version: int, text: str) -> str:
    """Return a statement that migrates to a version, unless the journal had that version at the start of the script."""
    assert "$migration$" not in text, "it would end the dollar quotes"
    return (
        f"DO $step$\nBEGIN\nIF current_setting('stream_server.installed_version')::integer < {version} THEN"
        f" EXECUTE $migration$\n{text}$migration$; END IF;\nEND\n$step$;\n\n"
    )


def build_uninstall_sql() -> str:
    """Return the script that removes everything that `build_install_sql` creates."""
    return load_sql("uninstall.sql")


async def install_journal(
    url: str, airflow_schema: str, *, lock_timeout: float, attempts: int, reader: str | None = None
) -> None:
    """Install, upgrade or repair the journal and its triggers, in one transaction.

    Args:
        url: Database URL. The role must be allowed to create a schema, and triggers on Airflow's tables.
        airflow_schema: Schema of Airflow's tables.
        reader: Role that is granted what `stream-server serve` needs.
        lock_timeout: Seconds that each attempt may wait for a lock on an Airflow table. Airflow's own statements wait
            behind ours for that time at most.
        attempts: Maximum number of attempts.

    Raises:
        InstallError: It failed. The database is unchanged.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        await _require_airflow_tables(connection, airflow_schema)
        await _run_with_retries(connection, build_install_sql(airflow_schema, reader), lock_timeout, attempts)


async def uninstall_journal(url: str, *, lock_timeout: float, attempts: int) -> None:
    """Remove everything that `install_journal` created. Errors as for `install_journal`."""
    async with _connected(url) as connection:
        await _run_with_retries(connection, build_uninstall_sql(), lock_timeout, attempts)


async def disable_triggers(url: str) -> None:
    """Disable the triggers at once: this needs no lock on Airflow's tables.

    Raises:
        InstallError: The role does not own the journal.
        JournalMissing: The journal is not installed.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        await _run_with_retries(connection, load_sql("disable.sql"), SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS)


async def enable_triggers(url: str) -> None:
    """Enable the triggers, and restore missing ones. Errors as for `disable_triggers`."""
    async with _connected(url) as connection:
        schema = (await read_status(connection)).airflow_schema
        assert schema is not None, "meta.airflow_schema is NOT NULL"
        await _require_airflow_tables(connection, schema)
        await _run_with_retries(
            connection, load_sql("enable.sql") + build_install_sql(schema), SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS
        )


async def fetch_status(url: str) -> JournalStatus:
    """Return the status of the journal, also if it is not installed.

    Raises:
        JournalForbidden: The role may not read it.
        JournalUnreachable: PostgreSQL does not answer.
    """
    async with _connected(url) as connection:
        try:
            return await read_status(connection)
        except JournalMissing:
            return JournalStatus(installed=False)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[DatabaseConnection]:
    connection = await connect(url)
    try:
        yield connection
    finally:
        await close_connection(connection)


async def _require_airflow_tables(connection: AnyConnection, schema: str) -> None:
    tables = await read_airflow_tables(connection, schema)
    if (problem := tables.describe_problem()) is not None:
        raise InstallError(problem)
    if tables.revision is not None and not tables.is_release:
        log.warning(
            "The revision of Airflow's tables, %s, is unknown, but they have all columns that are needed",
            tables.revision,
            extra={"action": "airflow_revision_unknown"},
        )


class _LockTimeout(Exception):
    """An attempt timed out at a lock."""


async def _run_with_retries(connection: AnyConnection, script: str, lock_timeout: float, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            await _run_once(connection, script, lock_timeout)
        except _LockTimeout as error:
            if attempt == attempts:
                raise InstallError(
                    f"Other transactions locked Airflow's tables in all of {attempts} attempts of {lock_timeout:g} s;"
                    " nothing was changed. See pg_stat_activity for long transactions"
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
                f"The database role lacks a privilege: {error}. See Roles in docs/operations.md"
            ) from error

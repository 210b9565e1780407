"""Install, uninstall, disable and enable the journal and its triggers, and read their status."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import asyncpg

from stream_server.errors import InstallError, JournalMissing
from stream_server.journal.airflow_tables import AirflowSchemaUnknown, read_airflow_tables
from stream_server.journal.connection import (
    AnyConnection,
    DatabaseConnection,
    close_connection,
    connect,
    map_postgres_errors,
)
from stream_server.journal.origin import describe_foreign_journal, find_foreign_reason
from stream_server.journal.privileges import build_grants_sql
from stream_server.journal.queries import (
    fill_placeholders,
    load_migrations,
    load_server_queries,
    load_sql,
    quote_identifier,
    quote_literal,
)

log = logging.getLogger(__name__)

SCHEMA_VERSION = 5
"""Schema version that this package installs: that of the last migration."""

OLDEST_READABLE_SCHEMA = 1
"""Oldest schema version that this server can read. At least the previous one, so that deployments can be gradual."""

OLDEST_COMPATIBLE_SERVER = 1
"""Oldest server, by the schema version that it installs, that can read this schema. At least the previous one."""

SCHEMA_UNKNOWN = (
    "the triggers met tables of Airflow that they can't read, and do nothing since; run `stream-server install`"
)
"""Problem of a journal whose triggers lacked a column or table of Airflow."""

HIDDEN_FLAG = (
    "the role {role} may not read whether the triggers do nothing; run `stream-server install --reader {role}`, or"
    " `GRANT SELECT ON SEQUENCE stream_server.unknown_schema TO {role}`"
)
"""Warning for a role that an earlier version has granted its privileges."""

OWNER_PROBLEM = (
    "the owner of the trigger functions, {owner}, lacks SELECT on {tables}, so the triggers lose transitions;"
    " grant it, see Roles in docs/operations.md"
)
"""Problem of a journal whose triggers may not read Airflow's tables."""

SWITCH_LOCK_TIMEOUT, SWITCH_ATTEMPTS = 2.0, 10
"""Arguments of `install_journal` for enabling, which restores missing triggers, and for disabling."""

_META_QUERY = """
SELECT version, oldest_server, airflow_schema,
       coalesce(has_table_privilege(to_regclass(format('%I.hitl_detail', airflow_schema)), 'SELECT'), false)
           AS has_requests
FROM stream_server.meta
"""


@dataclass(frozen=True)
class TriggerStatus:
    """One of the triggers of the journal."""

    table: str
    trigger: str
    installed: bool
    enabled: bool
    current: bool
    """Whether its definition is that of this version."""

    @property
    def is_working(self) -> bool:
        return self.installed and self.enabled and self.current

    @property
    def problem(self) -> str | None:
        """What is wrong, as a sentence; `None` if nothing is."""
        name = f"trigger {self.trigger} on {self.table}"
        if not self.installed:
            return f"{name} is missing"
        if not self.current:
            return f"{name} is not that of this version"
        return None if self.enabled else f"{name} is disabled"


@dataclass(frozen=True)
class JournalStatus:
    """The installed version of the journal, and the state of its triggers."""

    installed: bool
    version: int | None = None
    expected_version: int = SCHEMA_VERSION
    oldest_server: int = 0
    """Servers of an older version than this can't read the journal."""

    epoch: str | None = None
    airflow_schema: str | None = None
    enabled: bool = True
    """Whether the triggers write to the journal; see `stream_server.switch_off()`."""

    losses: int = 0
    """Number of writes that the triggers dropped since the installation."""

    schema_unknown: bool = False
    """Whether the triggers met tables of Airflow that they can't read. They do nothing since then."""

    hidden_flag: str | None = None
    """Which privilege is missing to read `schema_unknown`, as a sentence; `None` if none."""

    airflow_problem: str | None = None
    """What Airflow's tables lack and what to do, as a sentence; `None` if nothing."""

    owner_problem: str | None = None
    """Which tables the owner of the trigger functions may not read, as a sentence; `None` if none."""

    foreign: str | None = None
    """Why the transaction ids of the journal are not those of this cluster, as a sentence; `None` if they are."""

    triggers: list[TriggerStatus] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is wrong and what to do, as sentences; empty if nothing is."""
        if not self.installed:
            return ["the journal is not installed; run `stream-server install`"]
        found = (
            _describe_mismatch(self.version, self.oldest_server),
            self.foreign,
            self.airflow_problem,
            self.owner_problem,
            None if not self.schema_unknown else SCHEMA_UNKNOWN,
            None if self.enabled else "the triggers are disabled; run `stream-server triggers enable`",
            *(trigger.problem for trigger in self.triggers),
        )
        return [problem for problem in found if problem is not None]

    @property
    def warnings(self) -> list[str]:
        """What an operator should look at, as sentences, although the journal works; empty if nothing."""
        return [] if self.hidden_flag is None else [self.hidden_flag]

    def as_json(self) -> dict[str, Any]:
        """Return the output of `stream-server status --json`."""
        return {"well": not self.problems, "problems": self.problems, "warnings": self.warnings, **asdict(self)}


def build_install_sql(airflow_schema: str, reader: str | None = None) -> str:
    """Return the script that installs, upgrades or repairs the journal, and grants `reader` its privileges."""
    migrations = "".join(_build_migration_step(version, text) for version, text in load_migrations().items())
    files = ("begin.sql", "functions.sql", "functions_tries.sql", "triggers.sql", "services.sql", "finish.sql")
    begin, *rest = map(load_sql, files)
    script = fill_placeholders(
        "\n".join((begin, migrations, *rest)),
        version=str(SCHEMA_VERSION),
        oldest_server=str(OLDEST_COMPATIBLE_SERVER),
        airflow=quote_literal(airflow_schema),
        airflow_tables=quote_identifier(airflow_schema),
        exception_handler=load_sql("exception_handler.sql").rstrip(),
        owner_privileges=_build_owner_query(airflow_schema),
    )
    return script if reader is None else f"{script}\n{build_grants_sql(reader, airflow_schema)}"


def _build_owner_query(airflow_schema: str) -> str:
    return fill_placeholders(load_sql("owner_privileges.sql"), airflow=quote_literal(airflow_schema)).rstrip()


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


async def read_status(connection: AnyConnection) -> JournalStatus:
    """Return the status of an installed journal.

    Raises:
        JournalForbidden: The role may not read it.
        JournalMissing: It is not installed, or incomplete.
        JournalUnreachable: PostgreSQL does not answer.
    """
    with map_postgres_errors():
        meta = await connection.fetchrow(
            "SELECT version, oldest_server, epoch, airflow_schema, enabled, last_value + is_called::integer AS losses,"
            " CASE WHEN has_sequence_privilege(s.unknown_schema, 'SELECT')"
            " THEN pg_sequence_last_value(s.unknown_schema) END IS NOT NULL AS schema_unknown,"
            " CASE WHEN NOT has_sequence_privilege(s.unknown_schema, 'SELECT')"
            " THEN quote_ident(current_user) END AS role_without_flag"
            " FROM stream_server.meta, stream_server.losses,"
            " to_regclass('stream_server.unknown_schema') AS s (unknown_schema)"
        )
        rows = await connection.fetch("SELECT * FROM stream_server.triggers()")
        await connection.fetch("SELECT FROM stream_server.journal LIMIT 1")
        reason = await find_foreign_reason(connection)
    if meta is None:
        raise JournalMissing("The journal is incomplete; run `stream-server install`")
    tables = await read_airflow_tables(connection, meta["airflow_schema"])
    with map_postgres_errors():
        lacking = await connection.fetchrow(_build_owner_query(meta["airflow_schema"]))
    return JournalStatus(
        installed=True,
        version=meta["version"],
        oldest_server=meta["oldest_server"],
        epoch=meta["epoch"],
        airflow_schema=meta["airflow_schema"],
        enabled=meta["enabled"],
        losses=meta["losses"],
        schema_unknown=meta["schema_unknown"],
        hidden_flag=None if meta["role_without_flag"] is None else HIDDEN_FLAG.format(role=meta["role_without_flag"]),
        airflow_problem=tables.describe_problem(),
        owner_problem=None if lacking is None else OWNER_PROBLEM.format(**lacking),
        foreign=None if reason is None else describe_foreign_journal(reason),
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


async def load_queries_for(connection: AnyConnection, *, only_journal: bool = False) -> dict[str, str]:
    """Return the queries of `load_server_queries` for Airflow's tables in this database.

    Args:
        connection: A connection to the database.
        only_journal: Whether the caller can do without the queries that read Airflow's tables.

    Raises:
        AirflowSchemaUnknown: The tables lack columns that the queries need, unless `only_journal`.
        JournalMissing: The journal is not installed, or this server can't read its version.
    """
    with map_postgres_errors():
        meta = await connection.fetchrow(_META_QUERY)
    mismatch = "it is empty" if meta is None else _describe_mismatch(meta["version"], meta["oldest_server"])
    if meta is None or mismatch is not None:
        raise JournalMissing(f"The journal can't be read: {mismatch}")
    tables = await read_airflow_tables(connection, meta["airflow_schema"])
    if not only_journal and (problem := tables.describe_problem()) is not None:
        raise AirflowSchemaUnknown(problem)
    return load_server_queries(tables.schema, has_tries=tables.has_tries, with_requests=meta["has_requests"])


def _describe_mismatch(version: int | None, oldest_server: int) -> str | None:
    """Return why this server can't read a journal; `None` if it can."""
    if version is None or version < OLDEST_READABLE_SCHEMA:
        return (
            f"the journal has version {version}, this program needs {OLDEST_READABLE_SCHEMA};"
            " run `stream-server install`"
        )
    if oldest_server > SCHEMA_VERSION:
        return f"the journal has version {version}, which needs a newer stream-server; this one knows {SCHEMA_VERSION}"
    return None

"""The status of the journal and its triggers, and the versions of its schema that this server can read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from stream_server.errors import JournalMissing
from stream_server.journal.airflow_tables import AirflowSchemaUnknown, read_airflow_tables
from stream_server.journal.connection import AnyConnection, map_postgres_errors
from stream_server.journal.installed_functions import describe_outdated_functions, find_outdated_functions
from stream_server.journal.origin import describe_foreign_journal, find_foreign_reason
from stream_server.journal.queries import fill_placeholders, load_server_queries, load_sql, quote_literal

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

_META_QUERY = """
SELECT version, oldest_server, airflow_schema,
       coalesce(has_table_privilege(to_regclass(format('%I.hitl_detail', airflow_schema)), 'SELECT'), false)
           AS has_requests,
       coalesce(has_table_privilege(to_regclass(format('%I.slot_pool', airflow_schema)), 'SELECT'), false) AS has_pools
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

    outdated_functions: str | None = None
    """Which functions are those of another version of this package, as a sentence; `None` if none, or if the triggers
    are disabled."""

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
        return [warning for warning in (self.hidden_flag, self.outdated_functions) if warning is not None]

    def as_json(self) -> dict[str, Any]:
        """Return the output of `stream-server status --json`."""
        return {"well": not self.problems, "problems": self.problems, "warnings": self.warnings, **asdict(self)}


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
        lacking = await connection.fetchrow(build_owner_query(meta["airflow_schema"]))
    # `switch_off` replaces functions.
    outdated = await find_outdated_functions(connection, meta["airflow_schema"]) if meta["enabled"] else []
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
        outdated_functions=describe_outdated_functions(outdated),
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
    return load_server_queries(
        tables.schema,
        has_tries=tables.has_tries,
        with_requests=meta["has_requests"],
        with_pools=meta["has_pools"],
    )


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


def build_owner_query(airflow_schema: str) -> str:
    return fill_placeholders(load_sql("owner_privileges.sql"), airflow=quote_literal(airflow_schema)).rstrip()

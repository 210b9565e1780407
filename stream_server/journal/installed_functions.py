"""The functions that the install script creates, and which of them a database has in another version.

Their text is compared, not a version: the schema version changes only with a migration.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache

from stream_server.journal.connection import AnyConnection, map_postgres_errors
from stream_server.journal.queries import fill_placeholders, load_sql, quote_identifier, quote_literal

FUNCTION_FILES = ("functions.sql", "functions_tries.sql", "triggers.sql", "services.sql")
"""Files of the install script that create functions. Every install runs them."""

NAMES_IN_WARNING = 3
"""How many functions the warning names."""

OUTDATED_FUNCTIONS = (
    "the journal works, but its functions are those of another version of stream_server ({names}); run"
    " `stream-server install` of the newest version in use"
)
"""Warning for an installation that lacks the fixes of this version."""

_FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION stream_server\.(\w+)\(.*?\$body\$(.*?)\$body\$", re.MULTILINE | re.DOTALL
)

_INSTALLED_QUERY = """
SELECT p.proname AS name, encode(sha256(convert_to(p.prosrc, 'UTF8')), 'hex') AS digest
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = 'stream_server'
"""


def build_functions_sql(airflow_schema: str) -> str:
    """Return the part of the install script that creates the functions, with the placeholders of versions left."""
    return fill_placeholders(
        "\n".join(map(load_sql, FUNCTION_FILES)),
        airflow=quote_literal(airflow_schema),
        airflow_tables=quote_identifier(airflow_schema),
        exception_handler=load_sql("exception_handler.sql").rstrip(),
    )


async def find_outdated_functions(connection: AnyConnection, airflow_schema: str) -> list[str]:
    """Return the names of the functions that are missing, or are not those of this version, in order."""
    with map_postgres_errors():
        installed = {(row["name"], row["digest"]) for row in await connection.fetch(_INSTALLED_QUERY)}
    return sorted({name for name, _ in _find_digests(airflow_schema) - installed})


def describe_outdated_functions(names: list[str]) -> str | None:
    """Return the warning as a sentence; `None` if there are no such functions."""
    if not names:
        return None
    others = len(names) - NAMES_IN_WARNING
    listed = [*names[:NAMES_IN_WARNING], *([f"{others} others"] if others > 0 else [])]
    return OUTDATED_FUNCTIONS.format(names=", ".join(listed))


@cache
def _find_digests(airflow_schema: str) -> frozenset[tuple[str, str]]:
    """Return the functions that this version installs, by name and SHA-256 of the text between the dollar quotes."""
    functions = _FUNCTION.findall(build_functions_sql(airflow_schema))
    return frozenset((name, hashlib.sha256(body.encode()).hexdigest()) for name, body in functions)

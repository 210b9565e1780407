"""The SQL files of this package."""

from __future__ import annotations

import re
from importlib.resources import files

from stream_server.domain.transition import OUTPUT_KEY

NOTIFY_LOCKS = {"sleepers": "1937011301, 1", "silent": "1937011301, 2"}
"""Keys of the advisory locks by which transactions and tails agree on who must ring. The first half spells "stre"."""

MAX_STORED_OUTPUT_BYTES = 256 * 1024
"""What a task has said at once is kept if it has no more bytes, as PostgreSQL writes it."""

COMMON_PLACEHOLDERS = {**NOTIFY_LOCKS, "output_key": OUTPUT_KEY, "output_bytes": str(MAX_STORED_OUTPUT_BYTES)}

_BLOCK_NAME = re.compile(r"^-- (\w+) --\n", re.MULTILINE)


def load_sql(name: str) -> str:
    """Return the text of a file in `sql/`."""
    return (files("stream_server.journal") / "sql" / name).read_text(encoding="utf-8")


def load_queries(file: str = "queries.sql", **placeholders: str) -> dict[str, str]:
    """Return the named blocks of a file, with their placeholders filled in."""
    _, *parts = _BLOCK_NAME.split(fill_placeholders(load_sql(file), **placeholders))
    return {name: block.strip() for name, block in zip(parts[::2], parts[1::2], strict=True)}


def load_migrations() -> dict[int, str]:
    """Return the migrations of our own schema by the version that each leads to, ascending."""
    folder = files("stream_server.journal") / "sql" / "migrations"
    texts = {int(file.name[:4]): file.read_text(encoding="utf-8") for file in folder.iterdir()}
    return dict(sorted(texts.items()))


def fill_placeholders(text: str, **placeholders: str) -> str:
    """Put values, and those that are the same everywhere, in the places of their names in braces."""
    for name, value in {**COMMON_PLACEHOLDERS, **placeholders}.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def quote_identifier(name: str) -> str:
    """Quote a name as PostgreSQL's `quote_ident` does, always with quotes."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote a string without backslashes as PostgreSQL's `quote_literal` does."""
    return "'" + text.replace("'", "''") + "'"

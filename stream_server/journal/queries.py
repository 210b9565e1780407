"""The SQL files of this package."""

from __future__ import annotations

import re
from importlib.resources import files

_NAME = re.compile(r"^-- (\w+) --\n", re.MULTILINE)


def load(name: str) -> str:
    """Return the text of a file in `sql/`."""
    return (files("stream_server.journal") / "sql" / name).read_text(encoding="utf-8")


def load_queries(**placeholders: str) -> dict[str, str]:
    """Return the named blocks of `queries.sql`, with their placeholders filled in."""
    text = load("queries.sql")
    for name, value in placeholders.items():
        text = text.replace(f"{{{name}}}", value)
    _, *parts = _NAME.split(text)
    return {name: block.strip() for name, block in zip(parts[::2], parts[1::2], strict=True)}


def quote_identifier(name: str) -> str:
    """Quote a name as PostgreSQL's `quote_ident` does, always with quotes."""
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Quote a string without backslashes as PostgreSQL's `quote_literal` does."""
    return "'" + text.replace("'", "''") + "'"

"""Database URLs, in the forms that Airflow's own configuration has them."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode

from stream_server.errors import SettingsError

_URL = re.compile(
    r"(?P<scheme>[^:/?#@]*)://(?:(?P<user>[^:/?@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
"""SQLAlchemy's reading (`sqlalchemy.engine.url`): a password may hold anything but an at sign, escaped or not."""

_URL_WITH_AT = re.compile(_URL.pattern.replace("[^@]*", ".*"), re.DOTALL)
"""For a password that holds one all the same: it ends at the last."""

_RENAMED = {"ssl": "sslmode"}
"""Query arguments that SQLAlchemy's asyncpg dialect calls by another name than libpq."""

_DIALECT_ONLY = frozenset({"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"})
"""Query arguments that mean something to SQLAlchemy alone."""


def normalize(url: str) -> str:
    """Return a URL that libpq and asyncpg understand, given one in SQLAlchemy's form.

    `postgresql+psycopg2://`, `postgresql+asyncpg://` and the like lose their driver; PostgreSQL is the only database
    that this package works with.

    Raises:
        SettingsError: The URL is none of PostgreSQL's. The message does not repeat it, since it may hold a password.
    """
    parts = _split(url)
    scheme = parts["scheme"].partition("+")[0].lower()
    if scheme not in ("postgresql", "postgres"):
        raise SettingsError(
            "The database URL must begin with postgresql:// (or postgresql+psycopg2:// and the like, as in Airflow's"
            f" [database] sql_alchemy_conn), not with {scheme or 'nothing'}://"
        )
    user, password = (quote(unquote(parts[name]), safe="") for name in ("user", "password"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    query = urlencode(
        [
            (_RENAMED.get(name, name), value)
            for name, value in parse_qsl(parts["query"], keep_blank_values=True)
            if name not in _DIALECT_ONLY
        ],
        quote_via=quote,
        safe="",
    )
    database = f"/{parts['database']}" if parts["database"] else ""
    return f"postgresql://{login}{parts['hosts']}{database}{'?' if query else ''}{query}"


def redact(url: str) -> str:
    """Return a URL that may be printed: without password and query."""
    parts = _split(url)
    user = f"{parts['user']}@" if parts["user"] or parts["password"] else ""
    database = f"/{parts['database']}" if parts["database"] else ""
    return f"{parts['scheme']}://{user}{parts['hosts']}{database}"


def _split(url: str) -> dict[str, str]:
    """Return the parts of a URL by name; those that it does not have are empty."""
    match = _URL.fullmatch(url)
    if match is not None and "@" in match["hosts"]:
        match = _URL_WITH_AT.fullmatch(url)
    if match is None:
        return dict.fromkeys(("scheme", "user", "password", "hosts", "database", "query"), "")
    return {name: value or "" for name, value in match.groupdict().items()}

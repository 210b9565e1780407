"""Database URLs, in the forms that Airflow's own configuration has them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from stream_server.errors import SettingsError

_SCHEMES = frozenset({"postgresql", "postgres"})

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
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _SCHEMES:
        raise SettingsError(
            "The database URL must begin with postgresql:// (or postgresql+psycopg2:// and the like, as in Airflow's"
            f" [database] sql_alchemy_conn), not with {scheme or 'nothing'}://"
        )
    query = urlencode(
        [
            (_RENAMED.get(name, name), value)
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
            if name not in _DIALECT_ONLY
        ],
        quote_via=quote,
    )
    # urlunsplit would drop the slashes of a URL without a host, which libpq takes for a path.
    return f"postgresql://{parts.netloc}{urlunsplit(('', '', parts.path, query, ''))}"


def redact(url: str) -> str:
    """Return a URL that may be printed: without password and query."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"

"""Database URLs, in the forms that Airflow's own configuration has them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlencode

from stream_server.errors import SettingsError
from stream_server.urls import are_valid_hosts, split_url

_LIBPQ_NAMES = {"ssl": "sslmode"}
"""Query arguments that SQLAlchemy's asyncpg dialect calls by another name than libpq."""

_DIALECT_ONLY = frozenset({"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"})
"""Query arguments that mean something to SQLAlchemy alone."""


def normalize_url(url: str) -> str:
    """Return a URL that libpq and asyncpg understand, given one in SQLAlchemy's form.

    `postgresql+psycopg2://`, `postgresql+asyncpg://` and the like lose their driver; PostgreSQL is the only database
    that this package works with.

    Raises:
        SettingsError: The URL is none of PostgreSQL's. The message does not repeat it, since it may hold a password.
    """
    parts = split_url(url)
    scheme = parts["scheme"].partition("+")[0].lower()
    if scheme not in ("postgresql", "postgres"):
        raise SettingsError(
            "The database URL must begin with postgresql:// (or postgresql+psycopg2:// and the like, as in Airflow's"
            f" [database] sql_alchemy_conn), not with {scheme or 'nothing'}://"
        )
    if not are_valid_hosts(parts["hosts"]):
        raise SettingsError(
            "The database URL has no proper host and port. Special characters of a password must be encoded in it: %40"
            " for @, %2F for /"
        )
    user, password = (quote(unquote(parts[name]), safe="") for name in ("user", "password"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    query = urlencode(
        [
            (_LIBPQ_NAMES.get(name, name), value)
            for name, value in parse_qsl(parts["query"], keep_blank_values=True)
            if name not in _DIALECT_ONLY
        ],
        quote_via=quote,
        safe="",
    )
    database = f"/{parts['database']}" if parts["database"] else ""
    return f"postgresql://{login}{parts['hosts']}{database}{'?' if query else ''}{query}"


def split_hosts(url: str) -> list[str]:
    """Return a URL for each host that a normalized URL names, in their order.

    One that prefers a standby is left whole: it can't be said of a single host whether another one is better.
    """
    parts = split_url(url)
    if "," not in parts["hosts"] or "prefer" in parts["query"]:
        return [url]
    # A comma in what stands before them is escaped.
    before, hosts, after = url.partition(parts["hosts"])
    return [f"{before}{host}{after}" for host in hosts.split(",")]

"""URLs: parsing, and display without secrets. All other modules use these functions and types."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from stream_server.errors import SettingsError

_URL = re.compile(
    r"(?P<scheme>[^:/?#@]*)://(?:(?P<user>[^:/?@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
"""As SQLAlchemy parses it (`sqlalchemy.engine.url`): a password may contain any character but `@`, encoded or not."""

_URL_WITH_AT = re.compile(_URL.pattern.replace("[^@]*", ".*"), re.DOTALL)
"""For a password that contains `@` nevertheless: it ends at the last one."""

_HOST = re.compile(r"(?:[^:@\[\]]*|\[[^\]@]*\])(?::\d{0,5})?")
"""A host with an optional port. A part of a password in a malformed URL does not match."""

_PUBLIC_ARGUMENTS = frozenset(
    {"application_name", "connect_timeout", "gssencmode", "ssl", "sslmode", "target_session_attrs"}
)
"""Query arguments whose values are no secrets."""


def split_url(url: str) -> dict[str, str]:
    """Return `scheme`, `user`, `password`, `hosts`, `database` and `query` of a URL. Missing parts are empty."""
    match = _URL.fullmatch(url)
    if match is not None and "@" in match["hosts"]:
        match = _URL_WITH_AT.fullmatch(url)
    if match is None:
        return dict.fromkeys(("scheme", "user", "password", "hosts", "database", "query"), "")
    return {name: value or "" for name, value in match.groupdict().items()}


def are_valid_hosts(hosts: str) -> bool:
    """Whether the `hosts` of `split_url` are host names, each with an optional port, separated by commas."""
    return all(map(_HOST.fullmatch, hosts.split(",")))


def redact_url(url: str) -> str:
    """Return a URL without its password and query; empty if the text is no URL."""
    match = _match_url(url)
    if match is None:
        return ""
    user = f"{match['user']}@" if match["user"] or match["password"] else ""
    database = f"/{match['database']}" if match["database"] else ""
    hosts = match["hosts"] if are_valid_hosts(match["hosts"]) else "***"
    return f"{match['scheme']}://{user}{hosts}{database}"


def mask_secrets(url: str) -> str:
    """Return a text of the same length with asterisks in place of the password and the query.

    If the text is no URL, all of it becomes asterisks.
    """
    match = _match_url(url)
    if match is None:
        return "*" * len(url)
    spans = [match.span(name) for name in ("password", "query")]
    if not are_valid_hosts(match["hosts"]):
        spans.append(match.span("hosts"))
    for start, end in spans:
        url = url[: max(start, 0)] + "*" * (end - start) + url[max(end, 0) :]
    return url


def find_secrets(url: str) -> frozenset[str]:
    """Return the parts of a URL that must not be printed, as they are and decoded.

    A part that also occurs in a public place, such as a password equal to the user name, is left out: to mask it in
    other texts would only make them unreadable.
    """
    match = _match_url(url)
    if match is None:
        return frozenset((url,)) - {""}
    query = [part.partition("=") for part in (match["query"] or "").split("&")]
    hidden = [match["password"] or "", *(value for name, _, value in query if name not in _PUBLIC_ARGUMENTS)]
    hidden += [host.partition(":")[2] for host in match["hosts"].split(",") if not _HOST.fullmatch(host)]
    shown = {"", match["user"], match["database"], *match["hosts"].split(",")}
    return frozenset({*hidden, *map(unquote, hidden)} - shown)


def _match_url(url: str) -> re.Match[str] | None:
    """Return the parts of a URL. If the password may end at several places, it ends at the last one."""
    return (_URL_WITH_AT if "@" in url else _URL).fullmatch(url)


_LIBPQ_NAMES = {"ssl": "sslmode"}
"""Query arguments of SQLAlchemy's asyncpg dialect with another name in libpq."""

_DIALECT_ONLY = frozenset({"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"})
"""Query arguments that only SQLAlchemy understands."""


@dataclass(frozen=True)
class DatabaseUrl:
    """A PostgreSQL URL in the form of libpq. `str` and `repr` show neither the password nor the query."""

    user: str
    """Percent-encoded, as all parts."""

    password: str = field(repr=False)
    hosts: str
    """Hosts with optional ports, separated by commas."""

    database: str
    query: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> DatabaseUrl:
        """Return the URL of a text in the form of libpq or SQLAlchemy.

        The driver in `postgresql+psycopg2://` and similar schemes is dropped, and so are query arguments of SQLAlchemy.

        Raises:
            SettingsError: The text is no PostgreSQL URL. The message does not repeat it, since it may contain a
                password.
        """
        parts = split_url(url)
        scheme = parts["scheme"].partition("+")[0].lower()
        if scheme not in ("postgresql", "postgres"):
            raise SettingsError(
                "The database URL must begin with postgresql:// (or postgresql+psycopg2:// and the like, as in"
                f" Airflow's [database] sql_alchemy_conn), not with {scheme or 'nothing'}://"
            )
        if not are_valid_hosts(parts["hosts"]):
            raise SettingsError(
                "The database URL has no valid host and port. Encode special characters of the password: %40 for @,"
                " %2F for /"
            )
        user, password = (quote(unquote(parts[name]), safe="") for name in ("user", "password"))
        arguments = [
            (_LIBPQ_NAMES.get(name, name), value)
            for name, value in parse_qsl(parts["query"], keep_blank_values=True)
            if name not in _DIALECT_ONLY
        ]
        query = urlencode(arguments, quote_via=quote, safe="")
        return cls(user, password, parts["hosts"], parts["database"], query)

    @property
    def text(self) -> str:
        """The URL with its secrets."""
        login = f"{self.user}:{self.password}@" if self.password else f"{self.user}@" if self.user else ""
        database = f"/{self.database}" if self.database else ""
        query = f"?{self.query}" if self.query else ""
        return f"postgresql://{login}{self.hosts}{database}{query}"

    def __str__(self) -> str:
        return redact_url(self.text)

    def split_hosts(self) -> list[DatabaseUrl]:
        """Return a URL for each host, in their order.

        A URL that prefers a standby is not split: which host to use depends on all of them.
        """
        if "prefer" in self.query:
            return [self]
        return [replace(self, hosts=host) for host in self.hosts.split(",")]


_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<authority>(?:[\w.~%!$&'()*+,;=-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?)(?:[/?#]|\Z)",
    re.ASCII | re.IGNORECASE,
)
"""RFC 6454 section 7.1. Browsers send no path; some WebSocket libraries do."""

MAX_PORT = 65_535


class Origin(NamedTuple):
    """The origin of a page or server (RFC 6454). It has no user and password, so it contains no secrets."""

    scheme: str
    authority: str
    """Host and port, as in the header `Host`."""

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Return the origin of a URL; `None` if the text is no URL, or has a user or password."""
        match = _ORIGIN.match(text)
        if match is None or int(match["port"] or 0) > MAX_PORT:
            return None
        return cls(match["scheme"], match["authority"])

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

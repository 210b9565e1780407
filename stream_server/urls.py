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

_WITHOUT_EFFECT = frozenset(
    {
        *("async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"),
        *("client_encoding", "fallback_application_name"),
    }
)
"""Query arguments that only SQLAlchemy understands, and those that change nothing: asyncpg always uses UTF-8."""

_UNSUPPORTED = frozenset(
    {
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("channel_binding", "require_auth", "requirepeer", "gssencmode", "gssdelegation", "requiressl"),
        *("sslcompression", "sslcertmode", "sslsni", "sslcrldir", "sslkeylogfile", "hostaddr", "load_balance_hosts"),
        *("replication", "servicefile", "min_protocol_version", "max_protocol_version"),
        *("scram_client_key", "scram_server_key"),
        *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    }
)
"""Connection parameters of libpq (PostgreSQL 18, "Parameter Key Words") that asyncpg does not have. It would send them
to the server as settings, which refuses the connection."""

_ENUMERATED = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
}

PASSWORD_FILE, PASSWORD_COMMAND = "stream_server_password_file", "stream_server_password_command"  # names
"""Query arguments that `add_password_source` adds."""


def add_password_source(url: str, file: str | None, command: str | None) -> str:
    """Return a database URL whose password is read from a file, or from the output of a command, at each connect."""
    added = {name: value for name, value in ((PASSWORD_FILE, file), (PASSWORD_COMMAND, command)) if value}
    if not added:
        return url
    return f"{url}{'&' if '?' in url else '?'}{urlencode(added, quote_via=quote, safe='')}"


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
    connect_timeout: int | None = field(default=None, repr=False)
    """Seconds to wait for a connection; `None` if the URL has no limit."""

    password_file: str | None = field(default=None, repr=False)
    password_command: str | None = field(default=None, repr=False)
    unsupported: tuple[str, ...] = field(default=(), repr=False)
    """Names of the arguments that have no effect here, although they have one in libpq."""

    @classmethod
    def parse(cls, url: str) -> DatabaseUrl:
        """Return the URL of a text in the form of libpq or SQLAlchemy.

        The driver in `postgresql+psycopg2://` and similar schemes is dropped, and so are query arguments of SQLAlchemy
        and those of libpq that asyncpg does not have.

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
        arguments = _QueryArguments(parts["query"])
        return cls(
            user,
            password,
            parts["hosts"] or arguments.pop_hosts(),
            parts["database"],
            connect_timeout=arguments.pop_timeout(),
            password_file=arguments.pop(PASSWORD_FILE),
            password_command=arguments.pop(PASSWORD_COMMAND),
            unsupported=arguments.pop_unsupported(),
            query=arguments.encode(),
        )

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
        if "target_session_attrs=prefer-standby" in self.query:
            return [self]
        return [replace(self, hosts=host) for host in self.hosts.split(",")]


class _QueryArguments:
    """The query of a database URL. Each method removes what it returns."""

    def __init__(self, query: str) -> None:
        self._arguments = [
            (_LIBPQ_NAMES.get(name, name), value)
            for name, value in parse_qsl(query, keep_blank_values=True)
            if name not in _WITHOUT_EFFECT
        ]
        for name, value in self._arguments:
            allowed = _ENUMERATED.get(name)
            if allowed is not None and value not in allowed:
                # The value may be a password in the wrong place.
                raise SettingsError(f"`{name}` of the database URL must be one of {', '.join(allowed)}")

    def pop(self, name: str) -> str | None:
        """Return the last value of an argument; `None` if it is missing."""
        values = self._pop_all(name)
        return values[-1] if values else None

    def pop_hosts(self) -> str:
        """Return the hosts of arguments, in the form of a URL; empty if they are paths of sockets.

        SQLAlchemy's form for several is `?host=a:5432&host=b:5432`, that of libpq `?host=a,b&port=5432,5433`.
        """
        values = [value for name, value in self._arguments if name == "host"]
        addresses = [value for name, value in self._arguments if name == "hostaddr"]
        hosts = [_bracket(host) for value in values or addresses for host in value.split(",")]
        ports = [port for name, value in self._arguments if name == "port" for port in value.split(",")]
        if not all(hosts) or not hosts or any(host.startswith(("/", "@")) for host in hosts):
            return ""
        for name in ("host", "port", *([] if values else ["hostaddr"])):
            self._pop_all(name)
        if len(ports) == 1:
            ports *= len(hosts)
        if ports:
            hosts = [f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False)]
        joined = ",".join(hosts)
        if len(ports) not in (0, len(hosts)) or not are_valid_hosts(joined):
            raise SettingsError("The arguments `host` and `port` of the database URL are no hosts with a port for each")
        return joined

    def pop_timeout(self) -> int | None:
        """Return `connect_timeout`; `None` if it sets no limit."""
        value = self.pop("connect_timeout")
        try:
            seconds = int(value or "0")
        except ValueError:
            raise SettingsError("`connect_timeout` of the database URL must be a number of seconds") from None
        return seconds if seconds > 0 else None

    def pop_unsupported(self) -> tuple[str, ...]:
        """Return the names of unsupported arguments."""
        names = tuple(sorted({name for name, _ in self._arguments if name in _UNSUPPORTED}))
        for name in names:
            self._pop_all(name)
        return names

    def encode(self) -> str:
        return urlencode(self._arguments, quote_via=quote, safe="")

    def _pop_all(self, name: str) -> list[str]:
        found = [value for other, value in self._arguments if other == name]
        self._arguments = [(other, value) for other, value in self._arguments if other != name]
        return found


def _bracket(host: str) -> str:
    """Return a host with brackets if it is an IPv6 address without them."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


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

"""Taking addresses apart, and showing them without what is secret in them."""

from __future__ import annotations

import re
from urllib.parse import unquote

_URL = re.compile(
    r"(?P<scheme>[^:/?#@]*)://(?:(?P<user>[^:/?@]*)(?::(?P<password>[^@]*))?@)?"
    r"(?P<hosts>[^/?]*)(?:/(?P<database>[^?]*))?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
"""SQLAlchemy's reading (`sqlalchemy.engine.url`): a password may hold anything but an at sign, escaped or not."""

_URL_WITH_AT = re.compile(_URL.pattern.replace("[^@]*", ".*"), re.DOTALL)
"""For a password that holds one all the same: it ends at the last."""

_HOST = re.compile(r"(?:[^:@\[\]]*|\[[^\]@]*\])(?::\d{0,5})?")
"""A host and perhaps its port; the password of a URL that was not written right does not look like one."""

_PUBLIC_ARGUMENTS = frozenset(
    {"application_name", "connect_timeout", "gssencmode", "ssl", "sslmode", "target_session_attrs"}
)
"""Query arguments whose values are common words, and no secrets."""


def split_url(url: str) -> dict[str, str]:
    """Return `scheme`, `user`, `password`, `hosts`, `database` and `query` of a URL; what it does not have is empty."""
    match = _URL.fullmatch(url)
    if match is not None and "@" in match["hosts"]:
        match = _URL_WITH_AT.fullmatch(url)
    if match is None:
        return dict.fromkeys(("scheme", "user", "password", "hosts", "database", "query"), "")
    return {name: value or "" for name, value in match.groupdict().items()}


def are_valid_hosts(hosts: str) -> bool:
    """Tell whether the part `hosts` of a URL is what it should be: names, each perhaps with a port."""
    return all(map(_HOST.fullmatch, hosts.split(",")))


def redact_url(url: str) -> str:
    """Return a URL that may be printed: without password and query."""
    match = _match_url(url)
    if match is None:
        return ""
    user = f"{match['user']}@" if match["user"] or match["password"] else ""
    database = f"/{match['database']}" if match["database"] else ""
    hosts = match["hosts"] if are_valid_hosts(match["hosts"]) else "***"
    return f"{match['scheme']}://{user}{hosts}{database}"


def mask_secrets(url: str) -> str:
    """Return a URL of the same length, with asterisks in the place of its password and its query.

    What is no URL becomes nothing but asterisks.
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
    """Return what must not be printed of a URL, as it stands there and decoded.

    What also stands where everybody may see it, as a password that is the user's name, is left out: hiding it in other
    texts would only make them hard to read.
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
    """Return the parts of a URL, in doubt with a longer password."""
    return (_URL_WITH_AT if "@" in url else _URL).fullmatch(url)

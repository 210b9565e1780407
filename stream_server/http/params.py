"""Parsing and validation of queries and headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar, cast

from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadParameter, RequestTooLarge, TokenInUrl
from stream_server.http.delivery.asgi_scope import find_header
from stream_server.http.state import State
from stream_server.protocol.cursor import ResumePoint
from stream_server.settings import parse_duration

Parse = TypeVar("Parse", bound=Callable[..., object])

WATCH_PARAMETERS = frozenset({"result", "confirm", "until"})
"""Query parameters of `WatchOptions`."""

POLYFILL_CURSOR = "lastEventId"
"""Query parameter in which polyfills of `EventSource` that can't send headers send the last event's id."""

CURSOR_PARAMETERS = frozenset({"cursor", POLYFILL_CURSOR})
STREAM_PARAMETERS = WATCH_PARAMETERS | CURSOR_PARAMETERS | {"ping"}
"""Query parameters of a run's stream."""

IGNORED_PREFIX = "_"
"""First character of parameters that are ignored: libraries add them so that no cache answers."""

TOKEN_PARAMETERS = frozenset(
    {"access_token", "api_key", "apikey", "auth", "authorization", "bearer", "id_token", "jwt", "token"}
)
"""Query parameters in which clients of other servers send a token; here they are refused."""

MAX_PARAMETERS = 1000
"""Parameters of a query, with repetitions."""

MAX_CACHED_BYTES = 1024
"""Longest query or header whose parsed form is kept."""

PING_BOUNDS = (1.0, 60.0)
"""Smallest and largest `ping`, in seconds."""

UNTIL_VALUES = ("result", "run")
CONFIRM_VALUES = ("push", "success")
"""Values of `until` and `confirm`; the first is the default."""

_NUMBER = re.compile("[0-9]{1,9}")
MAX_PREFERENCES = 50
"""Names of a header such as `Accept` that are read. Browsers send fewer than ten."""

_QUALITY = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
"""More than RFC 9110 section 12.4.2 allows: some clients send `.2`."""


def _cache_if_short(parse: Parse) -> Parse:
    """Return a function that keeps its results for short texts: most requests have one of a few."""
    cached = lru_cache(maxsize=256)(parse)

    def parse_or_reuse(text: bytes, *arguments: Any) -> object:  # noqa: ANN401 # those of `parse`
        return (cached if len(text) <= MAX_CACHED_BYTES else parse)(text, *arguments)

    return cast("Parse", parse_or_reuse)


@_cache_if_short
def _parse_query(text: bytes) -> QueryParams:
    if text.count(b"&") >= MAX_PARAMETERS:
        raise BadParameter(f"The query has more than {MAX_PARAMETERS} parameters")
    query = QueryParams(text)
    for name in query:
        if name.lower().lstrip(IGNORED_PREFIX) in TOKEN_PARAMETERS:
            # `lru_cache` does not keep exceptions: the token does not stay in memory.
            raise TokenInUrl(name)
    return query


def parse_query(connection: HTTPConnection) -> QueryParams:
    """Return the query parameters of a request, from a cache: most requests have one of a few queries.

    Raises:
        TokenInUrl: One of them is a bearer token. URLs are kept in logs and histories (RFC 9700 section 4.3.2).
    """
    return _parse_query(connection.scope["query_string"])


def raw_query(connection: HTTPConnection) -> str:
    """Return the unparsed query with its question mark; an empty string if there is none.

    `connection.url` is made from the header `Host`, which may be malformed.
    """
    text: bytes = connection.scope["query_string"]
    return f"?{text.decode('latin-1')}" if text else ""


def parse_run_key(connection: HTTPConnection) -> RunKey:
    """Return the run of the path. Starlette has percent-decoded it."""
    return RunKey(connection.path_params["dag_id"], connection.path_params["run_id"])


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        RequestTooLarge: It is larger than `STREAM_SERVER_MAX_BODY_BYTES`.
    """
    state: State = request.scope["state"]
    max_bytes = state["settings"].max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RequestTooLarge(f"The body has more than {max_bytes} bytes")
    return bytes(body)


def parse_watch_options(connection: HTTPConnection, known: frozenset[str] = STREAM_PARAMETERS) -> WatchOptions:
    """Return the watch options of a query.

    Args:
        connection: The request.
        known: All parameters that the endpoint has.

    Raises:
        BadParameter: A parameter is unknown or has an invalid value.
    """
    return with_url_prefix(connection.scope, _parse_watch_options(connection.scope["query_string"], known))


def with_url_prefix(scope: Scope, options: WatchOptions) -> WatchOptions:
    """Return watch options whose references have the URL prefix of the server."""
    state: State = scope["state"]
    prefix = state["settings"].url_prefix
    return replace(options, url_prefix=prefix) if prefix else options


def public_path(connection: HTTPConnection, path: str) -> str:
    """Return a path of this server or of Airflow's API as clients reach it."""
    state: State = connection.scope["state"]
    return state["settings"].url_prefix + path


@_cache_if_short
def _parse_watch_options(text: bytes, known: frozenset[str]) -> WatchOptions:
    query = _parse_query(text)
    refuse_unknown_parameters(query.keys(), known)
    results = query.getlist("result")
    if any(not task_id for task_id in results):
        raise BadParameter("`result` must be the ID of a task; omit it to get the result of the DAG")
    until = _parse_choice(query, "until", UNTIL_VALUES)
    confirm = _parse_choice(query, "confirm", CONFIRM_VALUES)
    return WatchOptions(
        result_tasks=tuple(dict.fromkeys(results)),
        until="run" if until == "run" else "result",
        confirm="success" if confirm == "success" else "push",
    )


def parse_resume_point(connection: HTTPConnection) -> ResumePoint | None:
    """Return where a client resumes, from `Last-Event-ID`, `lastEventId` or `cursor`; `None` for a new stream.

    An `EventSource`, or a polyfill of it, reconnects to the same URL, whose `cursor` is older than the last event's id.
    """
    return ResumePoint.parse(
        find_header(connection.scope, b"last-event-id") or _parse_cursor(connection.scope["query_string"])
    )


@_cache_if_short
def _parse_cursor(text: bytes) -> str | None:
    query = _parse_query(text)
    return query.get(POLYFILL_CURSOR) or query.get("cursor") or None


def parse_choice(connection: HTTPConnection, name: str, values: tuple[str, ...]) -> str:
    """Return a parameter with one of the values, of which the first is the default.

    Raises:
        BadParameter: It has another value.
    """
    return _parse_choice(parse_query(connection), name, values)


def _parse_choice(query: QueryParams, name: str, values: tuple[str, ...]) -> str:
    value = query.get(name, values[0])
    if value not in values:
        raise BadParameter(f"`{name}` must be {' or '.join(map(repr, values))}, got {value[:40]!r}")
    return value


def parse_flag(connection: HTTPConnection, name: str) -> bool:
    """Return a parameter that is `true` or `false`; `False` is the default.

    Raises:
        BadParameter: It has another value.
    """
    return parse_choice(connection, name, ("false", "true")) == "true"


def parse_seconds(connection: HTTPConnection, name: str, default: float) -> float:
    """Return the seconds of a parameter that is a duration.

    Raises:
        BadParameter: It is not a duration.
    """
    try:
        return parse_duration(parse_query(connection).get(name, default))
    except ValueError as error:
        raise BadParameter(f"`{name}`: {error}") from None


def parse_ping_interval(connection: HTTPConnection) -> float | None:
    """Return the seconds after which a silent stream gets a `ping`, from `ping`; `None` for those of the server.

    Raises:
        BadParameter: It is not a duration within `PING_BOUNDS`.
    """
    return _parse_ping(connection.scope["query_string"])


@_cache_if_short
def _parse_ping(text: bytes) -> float | None:
    value = _parse_query(text).get("ping")
    if value is None:
        return None
    smallest, largest = PING_BOUNDS
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise BadParameter(f"`ping`: {error}") from None
    if not smallest <= seconds <= largest:
        raise BadParameter(f"`ping` must be from {smallest:g}s to {largest:g}s, got {value[:40]!r}")
    return seconds


def parse_integer(connection: HTTPConnection, name: str, default: int, smallest: int, largest: int) -> int:
    """Return a parameter that is an integer within bounds, of at most nine digits.

    Raises:
        BadParameter: It is not.
    """
    text = parse_query(connection).get(name, str(default))
    value = int(text) if _NUMBER.fullmatch(text) else None
    if value is None or not smallest <= value <= largest:
        raise BadParameter(f"`{name}` must be an integer from {smallest} to {largest}, got {text[:40]!r}")
    return value


def refuse_unknown_parameters(names: Iterable[str], known: frozenset[str]) -> None:
    """Raise an error for a parameter that the endpoint does not have, so that a misspelt one is not ignored.

    Parameters whose names begin with `IGNORED_PREFIX` are ignored.

    Raises:
        BadParameter: There is one.
    """
    unknown = sorted(name for name in set(names) - known if not name.startswith(IGNORED_PREFIX))
    if unknown:
        allowed = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise BadParameter(f"This URL has no query parameter {unknown[0][:40]!r}; {allowed}")


def negotiate_media_type(connection: HTTPConnection, *offers: str) -> str:
    """Return the offered media type that `Accept` prefers (RFC 9110 section 12.5.1); of equals, the first."""
    accept = b", ".join([value for name, value in connection.scope["headers"] if name == b"accept"])
    return _select_offer(accept or b"*/*", offers)


@_cache_if_short
def _select_offer(accept: bytes, offers: tuple[str, ...]) -> str:
    qualities = parse_quality_values(accept.decode("latin-1"))

    def quality(offer: str) -> float:
        ranges = (offer, f"{offer.partition('/')[0]}/*", "*/*")
        return next((qualities[media_range] for media_range in ranges if media_range in qualities), 0.0)

    return max(offers, key=quality)


def parse_quality_values(header: str) -> Mapping[str, float]:
    """Return the quality values of a header such as `Accept`, by name in lower case (RFC 9110 section 12.4.2).

    From 0 to 1; 0 where the value is not a number. Names after the first `MAX_PREFERENCES` are ignored: thousands would
    take the event loop milliseconds.
    """
    qualities: dict[str, float] = {}
    for part in header.lower().split(",", MAX_PREFERENCES)[:MAX_PREFERENCES]:
        name, *parameters = (piece.strip() for piece in part.split(";", MAX_PREFERENCES))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        # `float` also accepts `nan`, which can't be compared.
        qualities[name] = min(float(quality), 1.0) if _QUALITY.fullmatch(quality) else 0.0
    return qualities


def matches_etag(headers: list[str], etag: str) -> bool:
    """Whether the values of `If-None-Match` have an entity tag, or `*` (RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for header in headers for tag in header.split(",")}
    return bool(tags & {etag, "*"})

"""Parsing and validation of queries and headers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection, Request

from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadParameter, RequestTooLarge, TokenInUrl
from stream_server.http.delivery.scope import find_header
from stream_server.http.state import State
from stream_server.protocol.cursor import ResumePoint
from stream_server.settings import parse_duration

WATCH_PARAMETERS = frozenset({"result", "confirm", "until"})
"""Parameters that say what is asked of a run."""

STREAM_PARAMETERS = WATCH_PARAMETERS | {"cursor"}
"""Parameters of a stream."""

TOKEN_PARAMETERS = frozenset({"access_token", "api_key", "auth", "authorization", "bearer", "jwt", "token"})
"""Parameters in which clients of other servers send a token."""

UNTIL_VALUES = ("result", "run")
CONFIRM_VALUES = ("push", "success")
"""Values of these parameters; the first is the default."""

_NUMBER = re.compile("[0-9]{1,9}")
_QUALITY = re.compile(r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+")
"""More than RFC 9110 section 12.4.2 has: some clients send `.2`."""


@lru_cache(maxsize=256)
def _parse_query(text: bytes) -> QueryParams:
    query = QueryParams(text)
    for name in query:
        if name.lower() in TOKEN_PARAMETERS:
            # What is raised is not kept.
            raise TokenInUrl(name)
    return query


def parse_query(connection: HTTPConnection) -> QueryParams:
    """Return the parameters of a request. Most streams are asked for with the same few.

    Raises:
        TokenInUrl: There is a bearer token among them: URLs are kept in logs and histories (RFC 9700 section 4.3.2).
    """
    return _parse_query(connection.scope["query_string"])


def raw_query(connection: HTTPConnection) -> str:
    """Return the query of a request as it came, with its question mark; nothing where there is none.

    `connection.url` depends on the header `Host`, which need not be one.
    """
    text: bytes = connection.scope["query_string"]
    return f"?{text.decode('latin-1')}" if text else ""


def parse_run_key(connection: HTTPConnection) -> RunKey:
    """Return the run that the path names. Starlette has decoded it."""
    return RunKey(connection.path_params["dag_id"], connection.path_params["run_id"])


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        TooLarge: It is larger than `STREAM_SERVER_MAX_BODY_BYTES`.
    """
    state: State = request.scope["state"]
    most = state["settings"].max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RequestTooLarge(f"The body has more than {most} bytes")
    return bytes(body)


def parse_watch_options(connection: HTTPConnection, known: frozenset[str] = STREAM_PARAMETERS) -> WatchOptions:
    """Return what the query asks.

    Args:
        connection: The request.
        known: Names of all parameters that it may have.

    Raises:
        BadParameter: A parameter is unknown, or its value is wrong.
    """
    return _parse_watch_options(connection.scope["query_string"], known)


@lru_cache(maxsize=256)
def _parse_watch_options(text: bytes, known: frozenset[str]) -> WatchOptions:
    query = _parse_query(text)
    refuse_unknown_parameters(query.keys(), known)
    results = query.getlist("result")
    if any(not task_id for task_id in results):
        raise BadParameter("result= needs the name of a task; leave it out to get the DAG's own result")
    until = _parse_choice(query, "until", UNTIL_VALUES)
    confirm = _parse_choice(query, "confirm", CONFIRM_VALUES)
    return WatchOptions(
        result_tasks=tuple(dict.fromkeys(results)),
        until="run" if until == "run" else "result",
        confirm="success" if confirm == "success" else "push",
    )


def parse_resume_point(connection: HTTPConnection) -> ResumePoint | None:
    """Return from where on the client wants to hear everything: where it was when its last connection ended.

    A returning `EventSource` asks for the same URL again, whose `cursor` is older than its `Last-Event-ID`.
    """
    return ResumePoint.parse(
        find_header(connection.scope, b"last-event-id") or _parse_cursor(connection.scope["query_string"])
    )


@lru_cache(maxsize=256)
def _parse_cursor(text: bytes) -> str | None:
    return _parse_query(text).get("cursor") or None


def parse_choice(connection: HTTPConnection, name: str, values: tuple[str, ...]) -> str:
    """Return a parameter that has one of some values; the first is the default.

    Raises:
        BadParameter: It has another.
    """
    return _parse_choice(parse_query(connection), name, values)


def _parse_choice(query: QueryParams, name: str, values: tuple[str, ...]) -> str:
    value = query.get(name, values[0])
    if value not in values:
        raise BadParameter(f"{name}={value[:40]} is neither {' nor '.join(map(repr, values))}")
    return value


def parse_flag(connection: HTTPConnection, name: str) -> bool:
    """Return a parameter that is `true` or `false`, the default.

    Raises:
        BadParameter: It is neither.
    """
    return parse_choice(connection, name, ("false", "true")) == "true"


def parse_seconds(connection: HTTPConnection, name: str, default: float) -> float:
    """Return a parameter that is a duration, in seconds.

    Raises:
        BadParameter: It is none.
    """
    try:
        return parse_duration(parse_query(connection).get(name, default))
    except ValueError as error:
        raise BadParameter(f"{name}: {error}") from None


def parse_integer(connection: HTTPConnection, name: str, default: int, least: int, most: int) -> int:
    """Return a parameter that is a whole number within bounds, of at most nine digits.

    Raises:
        BadParameter: It is none.
    """
    text = parse_query(connection).get(name, str(default))
    value = int(text) if _NUMBER.fullmatch(text) else None
    if value is None or not least <= value <= most:
        raise BadParameter(f"{name}={text[:40]} is no number from {least} to {most}")
    return value


def refuse_unknown_parameters(names: Iterable[str], known: frozenset[str]) -> None:
    """Refuse parameters that mean nothing here: a misspelt one would be silently ignored.

    Raises:
        BadParameter: There is one.
    """
    unknown = sorted(set(names) - known)
    if unknown:
        others = f"known are {', '.join(sorted(known))}" if known else "there is none at all"
        raise BadParameter(f"There is no parameter {unknown[0][:40]!r} here; {others}")


def negotiate_media_type(connection: HTTPConnection, *offers: str) -> str:
    """Return which media type the client wants most (RFC 9110 section 12.5.1); of equals, the first offered."""
    accept = b", ".join([value for name, value in connection.scope["headers"] if name == b"accept"])
    return _select_offer(accept or b"*/*", offers)


@lru_cache(maxsize=256)
def _select_offer(accept: bytes, offers: tuple[str, ...]) -> str:
    wanted = parse_quality_values(accept.decode("latin-1"))

    def weight(offer: str) -> float:
        kind = offer.partition("/")[0]
        return next((wanted[one] for one in (offer, f"{kind}/*", "*/*") if one in wanted), 0.0)

    return max(offers, key=weight)


def parse_quality_values(accept: str) -> Mapping[str, float]:
    """Return how much a client wants each of what it lists, in lower case (RFC 9110 section 12.4.2).

    From 0 to 1; 0 where the weight is no number.
    """
    found: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        # `float` also reads `nan`, which is neither more nor less than another weight.
        found[name] = min(float(quality), 1.0) if _QUALITY.fullmatch(quality) else 0.0
    return found


def matches_etag(lists: list[str], etag: str) -> bool:
    """Tell whether an entity tag, or any, is among those of `If-None-Match` (RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tags in lists for tag in tags.split(",")}
    return bool(tags & {etag, "*"})

"""Every error that this package raises on purpose, and every code that it closes a connection with.

    StreamServerError
    ├── BadRequest            the caller asked for something that can't be
    │   ├── BadParameter      a query parameter or path has a wrong value
    │   ├── UnknownTask       the DAG has no task of that name
    │   ├── StreamIdInUse     one name for two streams of a connection
    │   ├── TooManySubscriptions  more streams on one connection than are allowed
    │   ├── IdempotencyKeyReused         an idempotency key was used before, for something else
    │   ├── TokenInUrl        a token is given in a URL
    │   ├── RequestTooLarge          a request is larger than this server reads
    │   ├── UrlTooLong        its URL is
    │   ├── HeadersTooLarge   its headers are
    │   ├── RequestTooSlow    it has not come in time
    │   ├── NulInText         it has a character that nothing of Airflow's has
    │   └── NotHttp           it is no request at all
    ├── TicketRefused         a ticket is used up, expired, for something else, or none
    ├── RunNotFound           Airflow knows no such DAG run
    ├── PagesMissing          the pages were not built
    ├── Unauthenticated       the caller does not say who he is
    ├── OriginNotAllowed         a page of another origin asks
    ├── CursorError           a cursor is damaged
    ├── Unavailable           try again later
    │   ├── JournalMissing    the journal is not installed, or not whole
    │   ├── JournalForbidden  the database role lacks a privilege
    │   ├── JournalUnreachable  PostgreSQL does not answer
    │   ├── ReadReplica       nothing can be kept in a read replica
    │   ├── ServerFull        it has as many connections as it may
    │   ├── PermissionUnknown  Airflow can't be asked who may read what
    │   └── Draining          this server is shutting down
    ├── InstallError          install or uninstall could not be done
    ├── SettingsError         the configuration contradicts itself
    ├── AirflowError          Airflow's REST API refused or did not answer
    │   ├── AirflowRefused    it refused; its status goes on to the client
    │   └── AirflowNotResponding     it did not answer, or with an error of its own
    │       └── AirflowTimeout   not in time
    ├── AirflowUrlMissing        this server was not told where Airflow's API is
    ├── Throttled             the caller has, or does, more than one may
    │   ├── TooManyJoins      requests and subscriptions a second
    │   ├── TooManyTickets    tickets that are not used
    │   └── TooManyStreams    streams and waiting requests at once
    └── NoResult              the bare value was asked for, and there is none

Errors that may reach an HTTP client know their status and title; `problem()` gives them as RFC 9457 asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class StreamServerError(Exception):
    """Base of all errors raised on purpose. Its text is meant for people and holds no secret."""

    status: int = 500
    """HTTP status code that tells this error to a client."""

    title: str = "Internal error"
    """Short summary, the same for every occurrence (RFC 9457 section 3.1.3)."""

    retry_after: int | None = None
    """Seconds after which it makes sense to try again, for the `Retry-After` header."""

    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers of the answer."""

    def problem_body(self) -> dict[str, Any]:
        """Return the members of an `application/problem+json` body (RFC 9457 section 3)."""
        return {
            "type": f"urn:stream-server:problem:{self.title.lower().replace(' ', '-')}",
            "title": self.title,
            "status": self.status,
            "detail": str(self),
        }


class BadRequest(StreamServerError):
    """The caller asked for something that can't be."""

    status = 422
    title = "Bad request"


class BadParameter(BadRequest):
    """A query parameter has a wrong value. The text says what would be right."""

    title = "Bad parameter"


class UnknownTask(BadRequest):
    """The caller named a result task that the DAG does not have."""

    title = "Unknown task"

    def __init__(self, dag_id: str, task_id: str, known: list[str]) -> None:
        self.dag_id, self.task_id, self.known = dag_id, task_id, known
        names = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")  # noqa: PLR2004
        super().__init__(f"DAG {dag_id!r} has no task {task_id!r}; its tasks are: {names}")


class StreamIdInUse(BadRequest):
    """A client gives one name to two streams of a connection."""

    status = 409
    title = "Identity in use"


class TooManySubscriptions(BadRequest):
    """A client wants more streams on one connection than this server allows."""

    status = 429
    title = "Too many subscriptions"


class TicketRefused(StreamServerError):
    """A ticket is used up, expired, for another path, or was never given."""

    status = 401
    title = "Ticket refused"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}. A ticket opens one stream, once, and soon after it was given: get another one by"
            " POST /api/v2/stream/tickets, and go on with cursor= where the stream was"
        )


class RunNotFound(StreamServerError):
    """Airflow knows no such DAG run."""

    status = 404
    title = "Run not found"

    def __init__(self, dag_id: str, run_id: str) -> None:
        self.dag_id, self.run_id = dag_id, run_id
        super().__init__(f"DAG {dag_id!r} has no run {run_id!r}")


class PagesMissing(StreamServerError):
    """The pages were not built into this installation."""

    status = 404
    title = "Pages missing"


class Unauthenticated(StreamServerError):
    """The caller does not say who he is, where he must."""

    status = 401
    title = "Unauthenticated"


class OriginNotAllowed(StreamServerError):
    """A page of another origin asks, and this server was not told to let it."""

    status = 403
    title = "Foreign origin"


class CursorError(StreamServerError):
    """A cursor is damaged: it was not made by this server."""

    status = 422
    title = "Damaged cursor"


class Unavailable(StreamServerError):
    """The request is fine, but can't be served now."""

    status = 503
    title = "Unavailable"
    retry_after: int | None = 2


class JournalMissing(Unavailable):
    """The journal is not installed in this database, or is not whole."""

    title = "Journal missing"


class JournalForbidden(Unavailable):
    """The database role lacks a privilege."""

    title = "Journal forbidden"


class JournalUnreachable(Unavailable):
    """PostgreSQL does not answer."""

    title = "Journal unreachable"


class ReadReplica(Unavailable):
    """The database is a read replica, where nothing can be kept."""

    status = 501
    title = "Read replica"
    retry_after = None


class ServerFull(Unavailable):
    """This server has as many connections as it may."""

    title = "Server full"


class PermissionUnknown(Unavailable):
    """Airflow can't be asked whether the caller may do what he asks for."""

    title = "Permission unknown"


class Draining(Unavailable):
    """This server is shutting down; another replica, or its successor, will answer."""

    title = "Draining"

    def __init__(self) -> None:
        super().__init__("This server is shutting down; connect again")


class InstallError(StreamServerError):
    """Install or uninstall could not be done; the database is as it was before."""


class SettingsError(StreamServerError):
    """The configuration is incomplete or contradicts itself."""


class AirflowError(StreamServerError):
    """Airflow's REST API refused a request, or did not answer."""

    status = 502
    title = "Airflow error"


class AirflowRefused(AirflowError):
    """Airflow refused, and its answer goes on to the client with its own status."""

    title = "Refused by Airflow"

    def __init__(self, message: str, status: int, *, challenge: str | None = None) -> None:
        self.status = status
        self.challenge = challenge
        """What Airflow asks of who has not said who he is (`WWW-Authenticate`)."""
        super().__init__(message)


class AirflowNotResponding(AirflowError):
    """Airflow did not answer, or with an error of its own."""

    title = "Airflow does not answer"


class AirflowTimeout(AirflowNotResponding):
    """Airflow did not answer in time."""

    status = 504
    title = "Airflow is slow"


class AirflowUrlMissing(StreamServerError):
    """This server was not told where Airflow's API is."""

    status = 501
    title = "Airflow address unknown"

    def __init__(self) -> None:
        super().__init__("This server was started without --airflow-url, so it can ask nothing of Airflow")


class IdempotencyKeyReused(BadRequest):
    """An idempotency key was used before, for something else."""

    title = "Idempotency key reused"


class TokenInUrl(BadRequest):
    """A token is given in a URL, where logs and histories keep it."""

    status = 400
    title = "Token in URL"

    def __init__(self, parameter: str) -> None:
        super().__init__(
            f"{parameter[:40]}= is not read: a URL is kept in logs and histories. Send the token in the header"
            ' Authorization, or over WebSocket as the first message: {"op":"auth","token":"…"}'
        )


class RequestTooLarge(BadRequest):
    """A request is larger than this server reads."""

    status = 413
    title = "Request too large"


class UrlTooLong(BadRequest):
    """The URL of a request is longer than this server reads."""

    status = 414
    title = "URL too long"


class HeadersTooLarge(BadRequest):
    """A request has more headers, or larger ones, than this server reads."""

    status = 431
    title = "Headers too large"


class RequestTooSlow(BadRequest):
    """A request has not come in time."""

    status = 408
    title = "Request too slow"


class NulInText(BadRequest):
    """A request has a NUL character, which nothing that PostgreSQL keeps can have."""

    status = 400
    title = "NUL in text"

    def __init__(self) -> None:
        super().__init__("Nothing here has a NUL character (%00, \\u0000) in its name; leave it out")


class NotHttp(BadRequest):
    """What has come is no HTTP."""

    status = 400
    title = "Not HTTP"

    def __init__(self) -> None:
        super().__init__("This is no request that HTTP/1.1 knows (RFC 9112)")


class Throttled(StreamServerError):
    """The caller has, or does, more than one caller may."""

    status = 429
    title = "Too much"
    retry_after = 1

    def __init__(self, message: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class TooManyJoins(Throttled):
    """The caller begins requests, or subscriptions, faster than one may."""

    title = "Too many joins"


class TooManyTickets(Throttled):
    """The caller holds as many unused tickets as one may."""

    title = "Too many tickets"


class TooManyStreams(Throttled):
    """The caller has as many streams and waiting requests as one may."""

    title = "Too many streams"


class NoResult(StreamServerError):
    """The bare value was asked for, and there is none."""

    title = "No result"

    def __init__(self, message: str, status: int, outcome: dict[str, Any]) -> None:
        self.status = status
        self._body = outcome
        super().__init__(message)

    def problem_body(self) -> dict[str, Any]:
        """Return the problem with all that is known of the outcome."""
        return {**self._body, **super().problem_body()}

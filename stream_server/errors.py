"""Every error that this package raises on purpose.

    StreamServerError
    ├── BadRequest            the request cannot be served as it is
    │   ├── BadParameter      a query parameter or part of the path has a wrong value
    │   ├── UnknownTask       the DAG has no task of that name
    │   ├── StreamIdInUse     two streams of a connection have the same id
    │   ├── TooManySubscriptions  too many streams on one connection
    │   ├── IdempotencyKeyReused  an idempotency key was used for another request
    │   ├── TokenInUrl        a token is in a URL
    │   ├── RequestTooLarge   the body of a request is too large
    │   ├── UrlTooLong        the URL of a request is too long
    │   ├── HeadersTooLarge   the headers of a request are too large
    │   ├── RequestTooSlow    a request did not arrive in time
    │   ├── NulInText         a text has a NUL character
    │   └── NotHttp           the bytes are not an HTTP request
    ├── TicketRefused         a ticket is used, expired, unknown, or valid for something else
    ├── TicketOnlyReads       a ticket permits no answer
    ├── RunNotFound           Airflow does not know the DAG run
    ├── PagesMissing          the pages were not built
    ├── Unauthenticated       the caller did not authenticate
    ├── OriginNotAllowed      the request comes from a page of another origin
    ├── HostNotAllowed        the request is for a host that is not allowed
    ├── CursorError           a cursor is damaged
    ├── Unavailable           try again later
    │   ├── JournalMissing    the journal is not installed, or incomplete
    │   │   └── AirflowSchemaUnknown  Airflow's tables lack columns
    │   ├── JournalForbidden  the database role lacks a privilege
    │   ├── JournalUnreachable  PostgreSQL does not answer
    │   ├── ReadReplica       a read replica cannot store anything
    │   ├── ServerFull        the server has too many connections
    │   ├── PermissionUnknown  Airflow does not answer what the caller may do
    │   └── Draining          the server is shutting down
    ├── InstallError          install or uninstall failed
    ├── SettingsError         the configuration is incomplete or contradictory
    ├── AirflowError          Airflow's REST API refused or did not answer
    │   ├── AirflowRefused    it refused; its status is passed on to the client
    │   └── AirflowNotResponding  it did not answer, or with a server error
    │       └── AirflowTimeout  it did not answer in time
    ├── AirflowUrlMissing     the address of Airflow's API is not configured
    ├── Throttled             the caller exceeds a limit per caller
    │   ├── TooManyJoins      of new requests and subscriptions per second
    │   ├── TooManyTickets    of unused tickets
    │   └── TooManyStreams    of open streams and waiting requests
    └── NoResult              the plain value was requested, and there is none

Titles are public, because problem types are made of them. So are the docstrings: they are in `/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MAX_LISTED_TASKS = 20


class StreamServerError(Exception):
    """Base of all errors raised on purpose. The text is shown to users and contains no secret."""

    status: int = 500
    """HTTP status code of the response."""

    title: str = "Internal error"
    """Short summary, the same for every occurrence (RFC 9457 section 3.1.3)."""

    retry_after: int | None = None
    """Value of the `Retry-After` header, in seconds."""

    headers: Mapping[str, str] = MappingProxyType({})
    """Further headers of the response."""

    @classmethod
    def problem_type(cls) -> str:
        """Return the URN that identifies errors of this class (RFC 9457 section 3.1.1)."""
        return f"urn:stream-server:problem:{cls.title.lower().replace(' ', '-')}"

    def problem_body(self) -> dict[str, Any]:
        """Return the members of an `application/problem+json` body (RFC 9457 section 3)."""
        return {"type": self.problem_type(), "title": self.title, "status": self.status, "detail": str(self)}

    def copy_with(self, text: str, headers: Mapping[str, str]) -> StreamServerError:
        """Return a copy with another text and other headers. No constructor is called: some take more than a text."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.args, copied.headers = (text,), headers
        return copied


class BadRequest(StreamServerError):
    """The request cannot be served as it is."""

    status = 422
    title = "Bad request"


class BadParameter(BadRequest):
    """A query parameter has a wrong value. The text has what would be right."""

    title = "Bad parameter"


class UnknownTask(BadRequest):
    """The request names a result task that the DAG does not have."""

    title = "Unknown task"

    def __init__(self, dag_id: str, task_id: str, known: list[str]) -> None:
        self.dag_id, self.task_id, self.known = dag_id, task_id, known
        names = ", ".join(known[:MAX_LISTED_TASKS]) + (", ..." if len(known) > MAX_LISTED_TASKS else "")
        super().__init__(f"DAG {dag_id!r} has no task {task_id!r}; its tasks are: {names}")


class StreamIdInUse(BadRequest):
    """Another stream of the connection has the same id."""

    status = 409
    title = "Identity in use"


class TooManySubscriptions(BadRequest):
    """The connection has as many streams as this server allows."""

    status = 429
    title = "Too many subscriptions"


class TicketRefused(StreamServerError):
    """The ticket is used, expired, unknown, or valid for another path."""

    status = 401
    title = "Ticket refused"
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})

    def __init__(self, why: str) -> None:
        again = "request another one with POST /api/v2/stream/tickets, and resume the stream with cursor="
        super().__init__(f"{why}. A ticket opens one stream, once, for a short time: {again}")


class TicketOnlyReads(StreamServerError):
    """The connection was opened with a ticket, which permits reading only."""

    status = 403
    title = "Ticket only reads"


class RunNotFound(StreamServerError):
    """Airflow does not know the DAG run."""

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
    """The request needs authentication, and has none."""

    status = 401
    title = "Unauthenticated"


class OriginNotAllowed(StreamServerError):
    """The request comes from a page of another origin that this server does not allow."""

    status = 403
    title = "Foreign origin"


class HostNotAllowed(StreamServerError):
    """The header `Host` has a name that is not allowed where no credential is needed."""

    status = 403
    title = "Host not allowed"


class CursorError(StreamServerError):
    """The cursor is damaged: this server did not make it."""

    status = 422
    title = "Damaged cursor"


class Unavailable(StreamServerError):
    """The request is valid, but cannot be served now."""

    status = 503
    title = "Unavailable"
    retry_after: int | None = 2


class JournalMissing(Unavailable):
    """The journal is not installed in this database, or is incomplete."""

    title = "Journal missing"


class JournalForbidden(Unavailable):
    """The database role lacks a privilege."""

    title = "Journal forbidden"


class JournalUnreachable(Unavailable):
    """PostgreSQL does not answer."""

    title = "Journal unreachable"


class ReadReplica(Unavailable):
    """The database is a read replica, which cannot store anything."""

    status = 501
    title = "Read replica"
    retry_after = None


class ServerFull(Unavailable):
    """This server has as many connections as it allows."""

    title = "Server full"


class PermissionUnknown(Unavailable):
    """Airflow does not answer whether the caller has the permission that the request needs."""

    title = "Permission unknown"


class Draining(Unavailable):
    """This server is shutting down. Another replica, or the restarted server, will answer."""

    title = "Draining"

    def __init__(self) -> None:
        super().__init__("This server is shutting down; connect again")


class InstallError(StreamServerError):
    """Install or uninstall failed; the database is unchanged."""


class SettingsError(StreamServerError):
    """The configuration is incomplete or contradictory."""


class AirflowError(StreamServerError):
    """Airflow's REST API refused a request, or did not answer."""

    status = 502
    title = "Airflow error"


class AirflowRefused(AirflowError):
    """Airflow refused the request; the response has its status and its text."""

    title = "Refused by Airflow"

    def __init__(self, message: str, status: int, *, challenge: str | None = None) -> None:
        self.status, self.challenge = status, challenge
        """`challenge` is Airflow's `WWW-Authenticate` header, if it answered 401."""
        super().__init__(message)


class AirflowNotResponding(AirflowError):
    """Airflow did not answer, or answered with a server error."""

    title = "Airflow does not answer"


class AirflowTimeout(AirflowNotResponding):
    """Airflow did not answer in time."""

    status = 504
    title = "Airflow is slow"


class AirflowUrlMissing(StreamServerError):
    """This server is not configured with the address of Airflow's API."""

    status = 501
    title = "Airflow address unknown"

    def __init__(self) -> None:
        super().__init__("This server was started without --airflow-url, so it cannot send requests to Airflow")


class IdempotencyKeyReused(BadRequest):
    """The idempotency key was used for another request."""

    title = "Idempotency key reused"


class TokenInUrl(BadRequest):
    """A token is in the URL, where logs and browser histories keep it."""

    status = 400
    title = "Token in URL"

    def __init__(self, parameter: str) -> None:
        text = f"{parameter[:40]}= is not read: logs and browser histories keep URLs. Send the token in the header"
        super().__init__(text + ' Authorization, or over WebSocket as the first message: {"op":"auth","token":"…"}')


class RequestTooLarge(BadRequest):
    """The body of the request is larger than this server reads."""

    status = 413
    title = "Request too large"


class UrlTooLong(BadRequest):
    """The URL of the request is longer than this server reads, or than it can send to Airflow."""

    status = 414
    title = "URL too long"


class HeadersTooLarge(BadRequest):
    """The request has more headers, or larger ones, than this server reads."""

    status = 431
    title = "Headers too large"


class RequestTooSlow(BadRequest):
    """The request did not arrive in time."""

    status = 408
    title = "Request too slow"


class NulInText(BadRequest):
    """The request has a NUL character, which PostgreSQL cannot store in text."""

    status = 400
    title = "NUL in text"

    def __init__(self) -> None:
        super().__init__("Names have no NUL character (%00, \\u0000); leave it out")


class NotHttp(BadRequest):
    """The bytes that were received are not an HTTP request."""

    status = 400
    title = "Not HTTP"


class Throttled(StreamServerError):
    """The caller exceeds a limit per caller."""

    status = 429
    title = "Too much"
    retry_after = 1

    def __init__(self, message: str, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class TooManyJoins(Throttled):
    """The caller starts more requests or subscriptions per second than this server allows."""

    title = "Too many joins"


class TooManyTickets(Throttled):
    """The caller has as many unused tickets as this server allows."""

    title = "Too many tickets"


class TooManyStreams(Throttled):
    """The caller has as many streams and waiting requests as this server allows."""

    title = "Too many streams"


class NoResult(StreamServerError):
    """The plain value was requested, and there is none."""

    title = "No result"

    def __init__(self, message: str, status: int, outcome: dict[str, Any]) -> None:
        self.status, self._outcome = status, outcome
        super().__init__(message)

    def problem_body(self) -> dict[str, Any]:
        return {**self._outcome, **super().problem_body()}

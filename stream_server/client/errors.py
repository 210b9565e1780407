"""What the client raises.

ClientError
├── ConnectionLost      no connection for too long
│   └── RequestTimeout  the server accepted the connection, and did not answer in time
├── Refused             the server answered with an error status
│   ├── BadRequest      400
│   ├── Unauthenticated 401
│   ├── Forbidden       403
│   ├── NotFound        404
│   ├── Conflict        409
│   ├── InvalidRequest  422
│   ├── Throttled       429
│   └── ServerError     500 to 599
├── StreamClosed        the server closed a stream for good
│   └── TokenExpired    because of the token
├── UnexpectedResponse  the body is not one of stream_server
├── WaitTimeout         the outcome was not known in time; the run continues
└── NoResult            the run has no result that can be returned
    ├── RunFailed       it is certain that there will be none
    ├── ResultWithheld  the caller may not read it
    ├── ResultTooLarge  it is too large to be sent
    └── SeveralResults  several tasks have a result

A run that failed is not a failed request: only `result` raises `RunFailed`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from stream_server.protocol.bodies import FailureInfo


class ClientError(Exception):
    """Base class of the exceptions of the client."""


class ConnectionLost(ClientError):
    """No connection for too long."""

    may_have_arrived = True
    """Whether the server may have received the request."""


class RequestTimeout(ConnectionLost, TimeoutError):
    """The server accepted the connection, and did not answer in time."""


class Refused(ClientError):
    """The server rejected the request: the run does not exist, the request is invalid, or it is not allowed.

    Args:
        status: Status of the response.
        detail: What is wrong, as the server describes it.
        problem: Members of the problem (RFC 9457), if the response is one.
    """

    def __init__(self, status: int, detail: str, problem: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.status, self.detail, self.problem = status, detail, problem
        super().__init__(f"{detail} (HTTP {status})")

    @property
    def problem_type(self) -> str:
        """URN of the kind of problem; empty if the response is no problem."""
        return str(self.problem.get("type", ""))


class BadRequest(Refused):
    """The request is malformed (400)."""


class Unauthenticated(Refused):
    """There is no token, or it is not valid (401)."""


class Forbidden(Refused):
    """The caller may not do this (403)."""


class NotFound(Refused):
    """The DAG, the run or the task does not exist (404)."""


class Conflict(Refused):
    """The run exists already, or the request for input is not open any more (409)."""


class InvalidRequest(Refused):
    """A value is not allowed (422)."""


class Throttled(Refused):
    """The caller exceeds a limit (429)."""


class ServerError(Refused):
    """The server or Airflow cannot answer (500 to 599)."""


_CLASS_OF_STATUS: Mapping[int, type[Refused]] = {
    HTTPStatus.BAD_REQUEST: BadRequest,
    HTTPStatus.UNAUTHORIZED: Unauthenticated,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidRequest,
    HTTPStatus.TOO_MANY_REQUESTS: Throttled,
}


class UnexpectedResponse(ClientError):
    """The body of a response is not one of stream_server, for example because a proxy has answered."""


class StreamClosed(ClientError):
    """The server closed the stream for good; a further attempt would fail, too."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(f"{reason} (code {code})")


class TokenExpired(StreamClosed):
    """The token has expired or was revoked while the stream was open. The run continues."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, f"the token has expired or was revoked: {reason}")


class WaitTimeout(ClientError, TimeoutError):
    """The outcome was not known in time. The run continues.

    Args:
        dag_id: The DAG.
        run_id: The run.
        state: State of the run.
        seconds: How long the caller waited.
        cause: Why the last request had no answer, if it had none.
    """

    def __init__(
        self, dag_id: str, run_id: str, state: str | None, seconds: float, cause: ClientError | None = None
    ) -> None:
        self.dag_id, self.run_id, self.state = dag_id, run_id, state
        run = f"run {run_id!r} of DAG {dag_id!r}"
        if cause is None:
            super().__init__(f"{run} has no outcome after {seconds:g} s; its state is {state}")
        else:
            super().__init__(f"the outcome of {run} is not known within {seconds:g} s: {cause}")


class NoResult(ClientError):
    """The run has no result that can be returned.

    Args:
        dag_id: The DAG.
        run_id: The run.
        explanation: Why there is none.
        reason: `task_skipped`, `no_result_task` or `run_ended`; a later server may send others.
        task_id: The task that is the reason.
    """

    def __init__(
        self, dag_id: str, run_id: str, explanation: str, *, reason: str | None = None, task_id: str | None = None
    ) -> None:
        self.dag_id, self.run_id, self.reason, self.task_id = dag_id, run_id, reason, task_id
        super().__init__(f"run {run_id!r} of DAG {dag_id!r} has no result: {explanation}")


class RunFailed(NoResult):
    """It is certain that there will be no result. The members are those of the frame `failure`."""

    def __init__(self, dag_id: str, run_id: str, failure: FailureInfo) -> None:
        task = f" in task {failure.task_id!r}" if failure.task_id else ""
        explanation = f"{failure.reason.replace('_', ' ')}{task}"
        super().__init__(dag_id, run_id, explanation, reason=failure.reason, task_id=failure.task_id)
        self.failure = failure
        self.map_index, self.try_number, self.state = failure.map_index, failure.try_number, failure.state


class ResultWithheld(NoResult):
    """The caller may read the run, and not its values."""


class ResultTooLarge(NoResult):
    """The value is too large to be sent; `Outcome.references` has its path in Airflow."""


class SeveralResults(NoResult):
    """Several tasks have a result; `Outcome.results` has all of them."""


def parse_refusal(status: int, body: bytes | bytearray | None) -> Refused:
    """Return the exception for a response with an error status."""
    return build_refusal(status, error_detail(body), _parse_problem(body))


def build_refusal(status: int, detail: str, problem: Mapping[str, Any] = MappingProxyType({})) -> Refused:
    """Return the exception for an error status."""
    kind = _CLASS_OF_STATUS.get(status, ServerError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else Refused)
    return kind(status, detail, problem)


def error_detail(body: bytes | bytearray | None) -> str:
    """Return the detail of a problem+json body, or the start of any other body."""
    text = (body or b"").decode(errors="replace")
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text[:500] or "the server gave no reason"


def _parse_problem(body: bytes | bytearray | None) -> Mapping[str, Any]:
    try:
        problem = json.loads(body or b"")
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}

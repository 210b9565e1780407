"""What is answered where nothing is streamed: how a run ended for the caller, or how it stands. Pure."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Literal, TypedDict

import msgspec

from stream_server.errors import BadParameter, NoResult
from stream_server.frames import NO_STATUS, AnyFrame, Close, End, Failure, Reference, Reset, Result
from stream_server.run_state import RunKey, RunState

FORBIDDEN = 403


class FailureInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why the answer will not come; the members are those of the `failure` frame."""

    reason: str
    task_id: str | None
    map_index: int | None
    try_number: int | None
    state: str | None
    predicted: bool


class RunAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run ended for the caller. A run that failed is not a failed request."""

    dag_id: str
    dag_run_id: str
    """The run; the member has the name that Airflow's API gives it."""

    state: str | None
    """State of the run, which may still go on."""

    outcome: Literal["result", "failure", "none", "pending"]
    """What became of the answer; `none` where no task answers, `pending` where the time was up before."""

    results: dict[str, msgspec.Raw] | None = None
    """JSON value by task; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] | None = None
    """Values too large to be sent."""

    withheld: bool = False
    """Whether there are values that the caller may not read."""

    failure: FailureInfo | None = None
    """Why the answer will not come."""

    tasks: dict[str, int] | None = None
    """Task instances by state, while the outcome is pending."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was told to stop."""

    dag_id: str
    dag_run_id: str
    state: str
    """State of the run now: while teardowns still run, it is not `failed` yet."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket: it opens one of the streams, once."""

    ticket: str
    """To be put behind `?ticket=`."""

    expires_at: datetime
    """When it is no good any more, if it was not used."""

    paths: list[str]
    """What it is for, as they were asked for."""


class WaitLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the answer to `wait`, as Airflow has it."""

    state: str
    """State of the run."""

    results: dict[str, msgspec.Raw] = {}
    """Only in the last line: JSON value by task; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] = {}


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process runs."""

    status: Literal["ok"]
    """Always the same; that there is an answer is what is told."""


class TailReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """What the tail has of PostgreSQL."""

    connected: bool
    """Whether PostgreSQL answers."""

    doorbell: bool
    """Whether notifications come through; if not, the journal is looked into now and then."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether streams are whole and live."""

    status: Literal["ready", "unavailable"]
    """Whether there are no problems."""

    problems: list[str]
    """Why streams can't be served."""

    warnings: list[str]
    """What an operator should look at, while streams go on."""

    tail: TailReadiness
    """How the journal is followed."""


class Problem(TypedDict):
    """What is wrong with a request (RFC 9457)."""

    type: str
    """A URN for what is wrong; the same for every occurrence."""

    title: str
    """The same in words."""

    status: int
    """HTTP status code of the answer."""

    detail: str
    """What was wrong, and what would be right."""


class Detail(TypedDict):
    """What is wrong with a request, as Airflow tells it."""

    detail: str | list[dict[str, msgspec.Raw]]
    """A text, or a list of what is wrong with which parameter."""


class Hearing:
    """Listens to the frames of one stream until the outcome is certain."""

    def __init__(self, key: RunKey) -> None:
        self._key = key
        self._told: Result | Failure | None = None
        self._end: End | None = None
        self.closed: Close | None = None
        """Why the stream can't be followed any further here."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._end is not None or self.closed is not None

    def hear(self, frame: AnyFrame) -> None:
        """Follow one frame."""
        if isinstance(frame, (Result, Failure)):
            self._told = frame
        elif isinstance(frame, Reset):
            self._told = None
        elif isinstance(frame, End):
            self._end = frame
        elif isinstance(frame, Close):
            self.closed = frame

    def answer(self, run: RunState | None) -> RunAnswer:
        """Return the outcome, or how the run stands."""
        dag_id, run_id = self._key
        if self._end is None:
            state = None if run is None else run.run.state
            return RunAnswer(dag_id=dag_id, dag_run_id=run_id, state=state, outcome="pending", tasks=_counts(run))
        told = self._told
        return RunAnswer(
            dag_id=dag_id,
            dag_run_id=run_id,
            state=self._end.state,
            outcome=self._end.outcome,
            results=told.results if isinstance(told, Result) else None,
            references=told.references or None if isinstance(told, Result) else None,
            withheld=isinstance(told, Result) and told.withheld,
            failure=_failure_info(told) if isinstance(told, Failure) else None,
        )


def bare_value(answer: RunAnswer, fail_status: int) -> bytes:
    """Return the value of the only result task, as JSON.

    Raises:
        BadParameter: Several tasks answer.
        NoResult: None does, or the value is too large to be sent, or is withheld.
    """
    names = [*(answer.results or {}), *(answer.references or {})]
    if answer.outcome == "result" and len(names) > 1:
        raise BadParameter(f"unwrap=true needs one task, and {', '.join(sorted(names))} answer; name one by result=")
    if answer.results and answer.outcome == "result":
        return bytes(next(iter(answer.results.values())))
    raise NoResult(_why(answer), FORBIDDEN if answer.withheld else fail_status, msgspec.to_builtins(answer))


def _why(answer: RunAnswer) -> str:
    run = f"run {answer.dag_run_id!r} of DAG {answer.dag_id!r}"
    if answer.withheld:
        return f"The caller may not read the result of {run}: Airflow does not let him read XComs"
    if answer.references:
        (reference,) = answer.references.values()
        return (
            f"The result of {run} has {reference.bytes} bytes, too many to be sent; Airflow has it at {reference.href}"
        )
    if answer.failure is None:
        return f"No task of {run} answers; name one by result="
    task = f" in task {answer.failure.task_id!r}" if answer.failure.task_id else ""
    return f"The result of {run} will not come: {answer.failure.reason.replace('_', ' ')}{task}"


def _failure_info(failure: Failure) -> FailureInfo:
    return FailureInfo(
        reason=failure.reason,
        task_id=failure.task_id,
        map_index=failure.map_index,
        try_number=failure.try_number,
        state=failure.state,
        predicted=failure.predicted,
    )


def _counts(run: RunState | None) -> dict[str, int]:
    if run is None:
        return {}
    states = (instance.state for instances in run.tasks.values() for instance in instances.values())
    return dict(Counter(state or NO_STATUS for state in states))

"""Body of a response that waits for an outcome."""

from __future__ import annotations

from collections import Counter

import msgspec

from stream_server.domain.run_state import RunKey, RunState
from stream_server.errors import BadParameter, NoResult
from stream_server.protocol.bodies import FailureInfo, RunAnswer
from stream_server.protocol.frames import NO_STATUS, AnyFrame, Close, End, Failure, Reset, Result

FORBIDDEN = 403


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
            state = None if run is None else run.info.state
            return RunAnswer(
                dag_id=dag_id, dag_run_id=run_id, state=state, outcome="pending", tasks=_count_task_states(run)
            )
        told = self._told
        return RunAnswer(
            dag_id=dag_id,
            dag_run_id=run_id,
            state=self._end.state,
            outcome=self._end.outcome,
            results=told.results if isinstance(told, Result) else None,
            references=told.references or None if isinstance(told, Result) else None,
            withheld=isinstance(told, Result) and told.withheld,
            failure=_build_failure_info(told) if isinstance(told, Failure) else None,
        )


def encode_bare_value(answer: RunAnswer, fail_status: int) -> bytes:
    """Return the value of the only result task, as JSON.

    Raises:
        BadParameter: There are several result tasks.
        NoResult: There is no value, or it is too large, or the caller may not read it.
    """
    names = [*(answer.results or {}), *(answer.references or {})]
    if answer.outcome == "result" and len(names) > 1:
        raise BadParameter(
            f"`unwrap` needs one result task, and the run has {', '.join(sorted(names))}; choose one with `result`"
        )
    if answer.results and answer.outcome == "result":
        return bytes(next(iter(answer.results.values())))
    raise NoResult(
        _explain_missing_value(answer), FORBIDDEN if answer.withheld else fail_status, msgspec.to_builtins(answer)
    )


def _explain_missing_value(answer: RunAnswer) -> str:
    run = f"run {answer.dag_run_id!r} of DAG {answer.dag_id!r}"
    if answer.withheld:
        return f"The caller may not read the result of {run}: Airflow denies access to its XComs"
    if answer.references:
        (reference,) = answer.references.values()
        return (
            f"The result of {run} has {reference.bytes} bytes, too many to send; get it from Airflow: {reference.href}"
        )
    if answer.failure is None:
        return f"There is no result task in {run}; choose a task with `result`"
    task = f" in task {answer.failure.task_id!r}" if answer.failure.task_id else ""
    return f"There will be no result of {run}: {answer.failure.reason.replace('_', ' ')}{task}"


def _build_failure_info(failure: Failure) -> FailureInfo:
    return FailureInfo(
        reason=failure.reason,
        task_id=failure.task_id,
        map_index=failure.map_index,
        try_number=failure.try_number,
        state=failure.state,
        predicted=failure.predicted,
    )


def _count_task_states(run: RunState | None) -> dict[str, int]:
    if run is None:
        return {}
    states = (instance.state for instances in run.tasks.values() for instance in instances.values())
    return dict(Counter(state or NO_STATUS for state in states))

"""Body of a response that waits for an outcome."""

from __future__ import annotations

from collections import Counter

import msgspec

from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.run_state import RunKey, RunState
from stream_server.errors import BadParameter, NoResult
from stream_server.hub.redaction import redact
from stream_server.protocol.bodies import FailureInfo, RunAnswer, WaitingInfo
from stream_server.protocol.frames import NO_STATUS, AnyFrame, Failure, Result

FORBIDDEN = 403


def build_answer(key: RunKey, tracker: OutcomeTracker, run: RunState | None) -> RunAnswer:
    """Return the outcome that was sent, or the state of the run while the outcome is pending.

    Args:
        key: The run.
        tracker: What the group of the caller was sent.
        run: The run; `None` if its state was lost.
    """
    dag_id, run_id = key
    if tracker.sent_end is None:
        state = None if run is None else run.info.state
        return RunAnswer(
            dag_id=dag_id,
            dag_run_id=run_id,
            state=state,
            outcome="pending",
            tasks=_count_task_states(run),
            waiting=_build_waiting_info(run),
        )
    outcome: AnyFrame | None = tracker.sent_outcome
    if outcome is not None and tracker.options.redact_values:
        (outcome,) = redact([outcome])
    result = outcome if isinstance(outcome, Result) else None
    return RunAnswer(
        dag_id=dag_id,
        dag_run_id=run_id,
        state=tracker.sent_end.state,
        outcome=tracker.sent_end.outcome,
        reason=tracker.sent_end.reason,
        task_id=tracker.sent_end.task_id,
        results=None if result is None else result.results,
        references=None if result is None else result.references or None,
        map_indexes=None if result is None else result.map_indexes or None,
        withheld=result is not None and result.withheld,
        failure=_build_failure_info(outcome) if isinstance(outcome, Failure) else None,
    )


def encode_bare_value(answer: RunAnswer, fail_status: int) -> bytes:
    """Return the value of the only result task that has one, as JSON.

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
    assert answer.failure is not None, "without a failure the outcome is `none`, which has no body"
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
        iteration=failure.iteration,
    )


def _build_waiting_info(run: RunState | None) -> WaitingInfo | None:
    if run is None or run.waiting is None or run.waiting.reason is None:
        return None
    return WaitingInfo(
        reason=run.waiting.reason,
        active_runs=run.waiting.active_runs,
        pool=run.waiting.pool,
        slots=run.waiting.slots,
        occupied=run.waiting.occupied,
        needed=run.waiting.needed,
    )


def _count_task_states(run: RunState | None) -> dict[str, int]:
    if run is None:
        return {}
    states = (instance.state for instances in run.tasks.values() for instance in instances.values())
    return dict(Counter(state or NO_STATUS for state in states))

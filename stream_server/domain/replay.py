"""What a resuming client has missed, made from journal rows. Pure.

A client resumes at the position of its token. The rows that became visible after it, up to the position at which its
new subscription starts, are replayed; later rows follow live. A replay is possible only if nothing that the client has
been sent was retracted meanwhile: otherwise it must start again from a snapshot. A replay has no outcome: the group of
the subscription sends it, unless the client knows it. A token has only the kind of the outcome that the client
knows: if rows may have replaced the outcome by another one of that kind, the client starts again, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from stream_server.domain.outcome import FailureKnown, ResultKnown, WatchOptions, evaluate, select_result_tasks
from stream_server.domain.prediction import END_OF_STATE
from stream_server.domain.run_state import FINAL_RUN_STATES, RETRACTING_STATES, RunState
from stream_server.domain.transition import RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import is_output, output_frames
from stream_server.protocol.cursor import JournalPosition, ResumeToken, SentOutcome
from stream_server.protocol.frames import AnyFrame, Resumed, RunInfo

_UNKNOWN_RUN = RunInfo(state=None, queued_at=None, start_date=None, end_date=None, clear_number=0)


class Gap(NamedTuple):
    """What lies between a client's token and the position at which its new subscription starts."""

    token: ResumeToken
    position: JournalPosition
    history: Sequence[Transition]
    """Rows that were not visible at the token, at least all that are visible at the position."""

    @property
    def rows(self) -> list[Transition]:
        """The rows to replay."""
        return visible_rows(self.history, self.position)


def visible_rows(history: Iterable[Transition], position: JournalPosition) -> list[Transition]:
    """Return the rows that are visible at a position. Later ones follow live, and would be sent twice."""
    return [row for row in history if position.is_visible(row.txid)]


def has_outcome(run: RunState, options: WatchOptions, kind: SentOutcome) -> bool:
    """Whether the outcome of a run is of this kind. It may be another one than a client knows: see `replay_run`."""
    return isinstance(evaluate(run, options), ResultKnown if kind == "result" else FailureKnown)


def replay_run(run: RunState, options: WatchOptions, gap: Gap, *, before_creation: bool) -> list[AnyFrame] | None:
    """Return the frames that a client has missed, or `None` if something was retracted that it has been sent.

    Args:
        run: The run at the position of the gap, or later.
        options: What the client watches.
        gap: What to replay.
        before_creation: Whether the run did not exist at the token. The replay then starts with an empty snapshot.
    """
    rows, sent, result_tasks = gap.rows, gap.token.sent_outcome, select_result_tasks(run, options)
    if sent is not None and any(_replaces_outcome(row, sent, result_tasks) for row in rows):
        return None
    if not run.is_deleted and not before_creation and any(row.kind is TransitionKind.RUN_DELETED for row in rows):
        # A new run has the id of the one that the client knows.
        return None
    if any(row.kind is TransitionKind.RUN_CHANGED for row in rows):
        # The client knows another structure, or instances that were deleted.
        return None
    if options.include_output and any(_retracts_output(run, row) for row in rows):
        return None
    # Rows are applied to a scratch state for their frames only: `run` has them already.
    scratch = RunState(run.key, _UNKNOWN_RUN, run.graph, is_replay=not before_creation)
    first = (
        scratch.snapshot(result_tasks)
        if before_creation
        else Resumed(dag_id=run.key.dag_id, run_id=run.key.run_id, since=str(gap.token))
    )
    ignored = _ignored_output(rows)
    frames: list[AnyFrame] = [first]
    for row in rows:
        if not is_output(row):
            frames += scratch.apply(row)
        elif options.include_output and row.seq not in ignored:
            # Output of a try that was repeated since would be retracted at once.
            current = [frame for frame in output_frames(row) if run.is_current(frame)]
            frames += scratch.output.add_frames(current, hash(row.body))[0]
    return frames


def explain_reset(history: Sequence[Transition] | None) -> Literal["cursor_expired", "run_changed", "revoked"]:
    """Return why `replay_run` returns `None`, or why there is no history."""
    if history is None:
        return "cursor_expired"
    return "run_changed" if any(row.kind is TransitionKind.RUN_CHANGED for row in history) else "revoked"


def _ignored_output(rows: Sequence[Transition]) -> set[int]:
    """Return the output rows that were written after their try had been given up: live clients did not get them.

    The state of a task instance at such a row is the previous state of its next transition.
    """
    states: dict[tuple[str | None, int | None, int | None], str | None] = {}
    ignored = set()
    for row in reversed(rows):
        instance = row.task_id, row.map_index, row.iteration
        if row.kind is TransitionKind.TASK:
            states[instance] = row.previous_state
        elif is_output(row) and instance in states and states[instance] in RETRACTING_STATES:
            ignored.add(row.seq)
    return ignored


def _replaces_outcome(row: Transition, sent: SentOutcome, result_tasks: Sequence[str]) -> bool:
    """Whether a row may have retracted an outcome, also if the run has one of that kind again."""
    if row.kind is TransitionKind.RUN:
        # A run that is cleared gets the same state again, unless it had ended.
        return row.previous_state in FINAL_RUN_STATES or row.state == row.previous_state
    answers = sent == "result" and row.task_id in result_tasks
    if row.kind is TransitionKind.XCOM:
        return answers and row.xcom_key == RETURN_VALUE_KEY
    if row.kind is not TransitionKind.TASK:
        return False
    if answers and (row.state, row.previous_state) != ("success", "running"):
        # A user may also mark a task that was skipped, or is certain to be, as a success.
        return True
    if sent == "failure" and row.previous_state in END_OF_STATE:
        # A user has marked a task that had ended, perhaps as a success and then as a failure again.
        return True
    return row.previous_state is not None and row.state in {None, "restarting"}


def _retracts_output(run: RunState, row: Transition) -> bool:
    if is_output(row):
        return row.seq in run.output.retracting_rows
    return row.kind is TransitionKind.TASK and row.had_output and row.state in RETRACTING_STATES

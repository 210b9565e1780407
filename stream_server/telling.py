"""The frame that tells a transition. Pure."""

from __future__ import annotations

from stream_server.frames import RunTransition, TaskTransition
from stream_server.transition import Kind, Transition


def tell(transition: Transition) -> TaskTransition | RunTransition | None:
    """Return the frame that tells a transition, or `None` for what is no change of a state.

    A run that was deleted has no state any more.
    """
    if transition.kind is Kind.TASK:
        return tell_task(transition)
    if transition.kind in {Kind.RUN, Kind.RUN_DELETED}:
        return tell_run(transition)
    return None


def tell_task(transition: Transition) -> TaskTransition:
    """Return the frame that tells a transition of a task instance."""
    assert transition.task_id is not None, "the journal names the task of every task transition"
    assert transition.map_index is not None, "task_instance.map_index is NOT NULL"
    return TaskTransition(
        dag_id=transition.dag_id,
        run_id=transition.run_id,
        seq=transition.seq,
        at=transition.at,
        task_id=transition.task_id,
        map_index=transition.map_index,
        try_number=transition.try_number or 0,
        state=transition.state,
        previous_state=transition.previous_state,
    )


def tell_run(transition: Transition) -> RunTransition:
    """Return the frame that tells a transition of a run."""
    return RunTransition(
        dag_id=transition.dag_id,
        run_id=transition.run_id,
        seq=transition.seq,
        at=transition.at,
        state=transition.state,
        previous_state=transition.previous_state,
        clear_number=transition.clear_number or 0,
    )

"""The frames of a transition."""

from __future__ import annotations

from typing import Any

from stream_server.domain.human_input import input_frames
from stream_server.domain.output_batch import OutputBatch, OutputItem, decode_batch, find_value
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.protocol.frames import AnyFrame, Reset, RunTransition, TaskTransition
from stream_server.protocol.output_frames import AnyOutputFrame


def frames_of(transition: Transition) -> list[AnyFrame]:
    """Return the frames of a transition, for streams of many runs; none for an XCom that is not output."""
    if transition.kind is TransitionKind.TASK:
        return [task_frame(transition)]
    if transition.kind in {TransitionKind.RUN, TransitionKind.RUN_DELETED}:
        return [run_frame(transition)]
    if transition.kind is TransitionKind.RUN_CHANGED:
        return [Reset(dag_id=transition.dag_id, run_id=transition.run_id, reason="run_changed")]
    if transition.kind is TransitionKind.INPUT:
        return [*input_frames(transition)]
    return [*output_frames(transition)]


def task_frame(transition: Transition) -> TaskTransition:
    """Return the frame of a task transition."""
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
        iteration=transition.iteration,
    )


def run_frame(transition: Transition) -> RunTransition:
    """Return the frame of a run transition. A deleted run has no state."""
    return RunTransition(
        dag_id=transition.dag_id,
        run_id=transition.run_id,
        seq=transition.seq,
        at=transition.at,
        state=transition.state,
        previous_state=transition.previous_state,
        clear_number=transition.clear_number or 0,
    )


def is_output(transition: Transition) -> bool:
    """Whether a transition is output of a running task."""
    return transition.kind is TransitionKind.XCOM and transition.xcom_key == OUTPUT_KEY


def output_frames(transition: Transition) -> list[AnyOutputFrame]:
    """Return the frames of a task's output; none if the value was not read, or was not written by our library."""
    if not is_output(transition) or transition.body is None:
        return []
    batch = decode_batch(transition.body)
    if batch is None:
        return []
    frames = (_output_frame(transition, batch, index, item) for index, item in enumerate(batch.items, batch.index))
    return [frame for frame in frames if frame is not None]


def _output_frame(
    transition: Transition, batch: OutputBatch, index: int, item: OutputItem | None
) -> AnyOutputFrame | None:
    if item is None:
        return None
    assert transition.task_id is not None, "an XCom belongs to a task"
    assert transition.map_index is not None, "xcom.map_index is NOT NULL"
    members: dict[str, Any] = {
        "dag_id": transition.dag_id,
        "run_id": transition.run_id,
        "seq": transition.seq,
        "at": transition.at,
        "task_id": transition.task_id,
        "map_index": transition.map_index,
        "try_number": batch.try_number,
        "index": index,
        "iteration": transition.iteration,
    }
    kind, value = find_value(item)
    return None if kind is None else kind(**members, value=value)

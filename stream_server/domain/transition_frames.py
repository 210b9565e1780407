"""The frames of a transition."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stream_server.domain.human_input import input_frames
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.protocol.frames import (
    AnyFrame,
    AnyOutputFrame,
    Chunk,
    Progress,
    Report,
    Reset,
    RunTransition,
    TaskTransition,
)


class _OutputItem(msgspec.Struct, frozen=True):
    """A chunk, or a progress report."""

    chunk: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    progress: float | msgspec.UnsetType | None = msgspec.UNSET
    text: str | None = None


class _OutputBatch(msgspec.Struct, frozen=True):
    """The value of the XCom that `stream_server.authoring.output` writes."""

    try_number: int
    index: Annotated[int, msgspec.Meta(ge=0)]
    """Position of the first item in the output of the try."""

    items: list[_OutputItem]


_batch_decoder = msgspec.json.Decoder(_OutputBatch)


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
    try:
        batch = _batch_decoder.decode(transition.body)
    except (msgspec.MsgspecError, RecursionError):
        # msgspec raises RecursionError for values that are nested too deeply.
        return []
    frames = (_output_frame(transition, batch, index, item) for index, item in enumerate(batch.items, batch.index))
    return [frame for frame in frames if frame is not None]


def _output_frame(transition: Transition, batch: _OutputBatch, index: int, item: _OutputItem) -> AnyOutputFrame | None:
    assert transition.task_id is not None, "an XCom belongs to a task"
    assert transition.map_index is not None, "xcom.map_index is NOT NULL"
    members = {
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
    if item.chunk is not msgspec.UNSET:
        return Chunk(**members, value=item.chunk)  # type: ignore[arg-type]
    if item.progress is not msgspec.UNSET:
        return Progress(**members, value=Report(fraction=item.progress, text=item.text))  # type: ignore[arg-type]
    return None

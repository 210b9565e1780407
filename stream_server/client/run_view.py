"""What is known of a run from the frames so far: tasks, output, questions, outcome. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stream_server.client.frames import (
    Chunk,
    End,
    Failure,
    Input,
    InputAnswered,
    Progress,
    Reset,
    Result,
    Resumed,
    RunTransition,
    Snapshot,
    StreamFrame,
    TaskTransition,
    Waiting,
)
from stream_server.client.outcomes import Outcome, build_outcome
from stream_server.protocol.output_frames import Report

ANSWERABLE_STATES = frozenset({"running", "deferred", "awaiting_input"})
"""States of a task instance whose request for input may be open (section "Human input" of docs/protocol.md)."""

FINAL_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


NO_STATUS = "no_status"
"""Name in `counts` of the state of an instance that has none."""


class InstanceKey(NamedTuple):
    """A task instance; `iteration` is that of the loop around the task."""

    task_id: str
    map_index: int
    iteration: int | None


@dataclass
class InstanceView:
    """A task instance."""

    state: str | None
    try_number: int
    progress: Report | None = None


@dataclass
class _Output:
    """Text of one try. It is joined when it is read: a stream may have very many chunks."""

    try_number: int
    _text: str = ""
    _added: list[str] = field(default_factory=list)

    def append(self, value: Any) -> None:
        if isinstance(value, str):
            self._added.append(value)

    @property
    def text(self) -> str:
        if self._added:
            self._text += "".join(self._added)
            self._added.clear()
        return self._text


class RunView:
    """A run as its frames describe it. Resets and snapshots are applied, so that it never has retracted values."""

    def __init__(self) -> None:
        self.dag_id: str | None = None
        self.run_id: str | None = None
        self.state: str | None = None
        self.tasks: dict[InstanceKey, InstanceView] = {}
        self.counts: dict[str, dict[str, int]] = {}
        """Number of instances by task and state, of tasks with too many instances to list: of those not in `tasks`."""

        self._counted: dict[str, int] = {}
        """Number of instances by task that a snapshot has counted. Airflow numbers them from 0 without gaps."""

        self.result_tasks: list[str] = []
        self.questions: dict[InstanceKey, Input] = {}
        """Open requests for human input."""

        self.waiting: Waiting | None = None
        """Why the run does not proceed."""

        self.last_outcome: Result | Failure | None = None
        self.end: End | None = None
        self._outputs: dict[InstanceKey, _Output] = {}

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; `None` before the end of the stream."""
        return None if self.end is None else build_outcome(self.end, self.last_outcome)

    @property
    def text(self) -> str:
        """The text that the result tasks have emitted; of all tasks, if no result task has emitted text."""
        outputs = self._outputs.items()
        answers = [output.text for key, output in outputs if key.task_id in self.result_tasks and output.text]
        return "".join(answers or (output.text for _, output in outputs))

    @property
    def fraction(self) -> float:
        """How much of the run is done, from 0 to 1: finished task instances, and the progress of the others."""
        if self.end is not None and self.end.outcome == "result":
            return 1.0
        counted = [(state, number) for states in self.counts.values() for state, number in states.items()]
        total = len(self.tasks) + sum(number for _, number in counted)
        done = sum(number for state, number in counted if state in FINAL_STATES)
        return (done + sum(map(_fraction_of, self.tasks.values()))) / total if total else 0.0

    def record(self, frame: StreamFrame) -> None:
        """Apply a frame."""
        match frame:
            case Reset():
                self._forget()
            case Snapshot():
                self._forget()
                self._record_snapshot(frame)
            case TaskTransition():
                self._record_task(frame)
            case Chunk():
                self._record_chunk(frame)
            case Progress() if (instance := self.tasks.get(_key_of(frame))) is not None:
                instance.progress = frame.value
            case Input():
                self.questions[_key_of(frame)] = frame
            case InputAnswered():
                self.questions.pop(_key_of(frame), None)
            case _:
                self._record_run(frame)

    def _record_run(self, frame: StreamFrame) -> None:
        """Apply a frame about the run as a whole."""
        match frame:
            case RunTransition():
                self.state, self.waiting = frame.state, None
            case Waiting():
                self.waiting = frame if frame.reason is not None else None
            case Resumed():
                self.waiting = None
            case Result() | Failure():
                self.last_outcome = frame
            case End():
                self.end, self.state, self.waiting = frame, frame.state, None
                self.questions.clear()
            case _:
                pass

    def _forget(self) -> None:
        self.tasks, self.counts, self._counted, self.questions, self._outputs = {}, {}, {}, {}, {}
        self.waiting = self.last_outcome = self.end = None

    def _record_snapshot(self, frame: Snapshot) -> None:
        self.dag_id, self.run_id, self.state = frame.dag_id, frame.run_id, frame.run.state
        self.result_tasks = [*frame.result_tasks]
        self.counts = {task_id: {**states} for task_id, states in frame.counts.items()}
        self._counted = {task_id: sum(states.values()) for task_id, states in frame.counts.items()}
        for task in frame.tasks:
            self.tasks[_key_of(task)] = InstanceView(task.state, task.try_number)

    def _record_task(self, frame: TaskTransition) -> None:
        key = _key_of(frame)
        self.waiting = None
        if frame.map_index >= 0:
            self.tasks.pop(key._replace(map_index=-1), None)
        before = self.tasks.get(key)
        if before is None and 0 <= frame.map_index < self._counted.get(frame.task_id, 0):
            self._uncount(frame.task_id, frame.previous_state or NO_STATUS)
        progress = before.progress if before is not None and before.try_number == frame.try_number else None
        self.tasks[key] = InstanceView(frame.state, frame.try_number, progress)
        question = self.questions.get(key)
        if question is not None and (question.try_number != frame.try_number or frame.state not in ANSWERABLE_STATES):
            del self.questions[key]

    def _uncount(self, task_id: str, state: str) -> None:
        """Record that an instance is listed from now on."""
        states = self.counts[task_id]
        if states.get(state, 0) > 0:
            states[state] -= 1

    def _record_chunk(self, frame: Chunk) -> None:
        key = _key_of(frame)
        output = self._outputs.get(key)
        if output is None or output.try_number != frame.try_number:
            output = self._outputs[key] = _Output(frame.try_number)
        output.append(frame.value)


def _key_of(item: Any) -> InstanceKey:
    return InstanceKey(item.task_id, item.map_index, item.iteration)


def _fraction_of(instance: InstanceView) -> float:
    if instance.state in FINAL_STATES:
        return 1.0
    if instance.progress is None or instance.progress.fraction is None:
        return 0.0
    return min(max(instance.progress.fraction, 0.0), 1.0)

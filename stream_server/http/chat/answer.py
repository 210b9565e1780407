"""The answer to a question, from the frames of its run. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import msgspec

from stream_server.http.chat.agent_steps import AgentStep, AgentSteps
from stream_server.http.chat.answer_text import AnswerText, TextStep
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import (
    AnyFrame,
    Close,
    End,
    Failure,
    Reset,
    Result,
    Snapshot,
    TaskInfo,
    TaskTransition,
    Waiting,
)
from stream_server.protocol.input_frames import Input, InputAnswered, InputFrame
from stream_server.protocol.output_frames import Chunk, OutputFrame, Progress, ToolCall, ToolRequest

TEXT_MEMBERS = ("answer", "text", "content", "message")
"""Members of a result that can be the text of the answer, as on the chat page."""

UNAUTHORIZED, FORBIDDEN, BAD_GATEWAY, UNAVAILABLE = 401, 403, 502, 503
STATUS_OF_CLOSE_CODE = {CloseCode.UNAUTHENTICATED: UNAUTHORIZED, CloseCode.FORBIDDEN: FORBIDDEN}
ACTIVE_STATES = frozenset({"running", "up_for_retry", "deferred", "failed", "upstream_failed"})
"""States of tasks that an activity is made of."""

WAITING_TEXTS = {
    "dag_paused": "The DAG is paused",
    "active_runs": "Waiting for other runs of the DAG",
    "pool": "Waiting for a free slot in a pool",
}
"""Texts by reason of the frame `waiting`."""


class Activity(NamedTuple):
    """What a task does, in one line."""

    text: str


class Failed(NamedTuple):
    """There is no answer."""

    message: str
    code: str
    status: int
    """HTTP status, if the response has not started."""

    is_final: bool = True
    """Whether the run has no answer. If not, the stream has ended, and the run continues."""


class Finished(NamedTuple):
    """The answer is complete."""

    value: Any
    """The result; `None` if there is none, or there are several."""


Step: TypeAlias = TextStep | AgentStep | Activity | Failed | Finished


class Answer:
    """Turns frames into the steps of an answer. The stream must be watched until the result.

    Args:
        keeps_thinking: Whether the thinking in `agent_steps` is needed.
        keeps_agent_steps: Whether all of `agent_steps` is needed.
        shown: The text that the client has from an earlier response.
    """

    def __init__(self, *, keeps_thinking: bool = False, keeps_agent_steps: bool = False, shown: str = "") -> None:
        self._text = AnswerText(shown)
        self._agents = AgentSteps(keeps_thinking=keeps_thinking, keeps_tools=keeps_agent_steps)
        self._result_tasks: frozenset[str] = frozenset()
        self._outcome: Result | Failure | None = None
        self._is_withheld = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text.text

    @property
    def agent_steps(self) -> list[AgentStep]:
        """What agents have done and was not retracted, oldest first."""
        return self._agents.standing

    @property
    def sent_text(self) -> str:
        """The text that the client has."""
        return self._text.sent

    def restore_agent_steps(self) -> list[AgentStep]:
        """Return what holds of `agent_steps`, for a client that has lost them. Those that come again follow."""
        return self._agents.restore()

    def apply(self, frame: AnyFrame) -> list[Step]:
        """Return what a client learns from a frame."""
        match frame:
            case Snapshot():
                self._result_tasks = frozenset(frame.result_tasks)
                return [Activity(f"{name_instance(task)}: running") for task in frame.tasks if task.state == "running"]
            case Chunk():
                return [*self._agents.add(frame, name_instance(frame)), *self._add_chunk(frame)]
            case Result() | Failure():
                self._outcome = frame
            case Reset():
                self._text.retract()
                self._agents.retract()
                self._outcome = None
            case End():
                return self._finish(frame)
            case Close():
                code = CloseCode(frame.code)
                status = STATUS_OF_CLOSE_CODE.get(code, UNAVAILABLE)
                return [Failed(frame.reason, f"stream_{code.name.lower()}", status, is_final=False)]
            case _:
                steps = self._agents.add(frame, name_instance(frame)) if isinstance(frame, OutputFrame) else []
                return [*steps, *[Activity(text) for text in (describe_activity(frame),) if text]]
        return []

    def _add_chunk(self, frame: Chunk) -> list[TextStep]:
        if frame.withheld:
            self._is_withheld = True
            return []
        if self._result_tasks and frame.task_id not in self._result_tasks:
            return []
        value = None if frame.value is msgspec.UNSET else msgspec.json.decode(frame.value)
        text = value if isinstance(value, str) else ""
        attempt = (frame.iteration or 0, frame.try_number)
        return self._text.add_output((frame.task_id, frame.map_index), attempt, text)

    def _finish(self, end: End) -> list[Step]:
        outcome = self._outcome
        if isinstance(outcome, Failure):
            return [Failed(describe_failure(outcome), outcome.reason, BAD_GATEWAY)]
        if outcome is None and not self._is_withheld:
            return [*self._text.finish(None), Finished(None)]
        if outcome is None or outcome.withheld:
            text = f"The caller may not read the result of run {end.run_id!r}: Airflow denies access to its XComs"
            return [Failed(text, "result_withheld", FORBIDDEN)]
        if outcome.references and self._text.is_empty:
            reference = next(iter(outcome.references.values()))
            text = f"The result of run {end.run_id!r} has {reference.bytes} bytes, too many to send"
            return [Failed(f"{text}; get it from Airflow: {reference.href}", "result_too_large", BAD_GATEWAY)]
        values = [msgspec.json.decode(value) for value in outcome.results.values()]
        final = self._select_text(values) if not outcome.references else None
        return [*self._text.finish(final), Finished(values[0] if len(values) == 1 else None)]

    def _select_text(self, values: list[Any]) -> str | None:
        """Return the text of the result; `None` if the text is what the tasks have written."""
        texts = [find_text(value) for value in values]
        if len(texts) == 1 and texts[0] is not None:
            return texts[0]
        if not self._text.is_empty:
            return None
        return "\n\n".join(
            [
                msgspec.json.format(msgspec.json.encode(value)).decode() if text is None else text
                for value, text in zip(values, texts, strict=True)
            ]
        )


def find_text(value: Any) -> str | None:  # noqa: ANN401 # any JSON value
    """Return the text of a result: itself, or its text member; `None` if it has none."""
    if isinstance(value, dict):
        return next((value[name] for name in TEXT_MEMBERS if isinstance(value.get(name), str)), None)
    return value if isinstance(value, str) else None


def describe_activity(frame: AnyFrame) -> str | None:
    """Return a line about what a task does now; `None` if the frame is no news for people."""
    if isinstance(frame, Waiting):
        return None if frame.reason is None else WAITING_TEXTS.get(frame.reason, frame.reason.replace("_", " "))
    if isinstance(frame, OutputFrame | TaskTransition | InputFrame) and (text := _describe_event(frame)):
        return f"{name_instance(frame)}: {text}"
    return None


def _describe_event(frame: OutputFrame | TaskTransition | InputFrame) -> str | None:
    """Return what has happened to a task instance; `None` if it is no news for people."""
    match frame:
        case Progress():
            return None if frame.withheld or frame.value is msgspec.UNSET else frame.value.text
        case ToolCall(value=ToolRequest() as request):
            return f"calls {request.name}"
        case TaskTransition():
            return frame.state.replace("_", " ") if frame.state in ACTIVE_STATES else None
        case Input():
            return f"asks {frame.subject or ''}".rstrip()
        case InputAnswered():
            return "got no answer in time" if frame.expired else "was answered"
        case _:
            return None


def name_instance(frame: OutputFrame | TaskTransition | TaskInfo | InputFrame) -> str:
    """Return the name of a task instance, which is unique in its run."""
    index = "" if frame.map_index < 0 else f"[{frame.map_index}]"
    iteration = None if isinstance(frame, InputFrame) else frame.iteration
    return f"{frame.task_id}{index}" + ("" if iteration is None else f" (iteration {iteration})")


def describe_failure(failure: Failure) -> str:
    """Return why a run has no result, in one line."""
    task = f" (task {failure.task_id!r})" if failure.task_id else ""
    return f"Run {failure.run_id!r} has no result: {failure.reason.replace('_', ' ')}{task}"

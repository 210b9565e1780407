"""Translation of frames to events of AG-UI. Pure.

Clients verify the order of events: a step, or a message, is open at most once, and all are closed before the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from stream_server.domain.human_input import WAITING_STATES
from stream_server.domain.run_state import RunKey
from stream_server.http.agui.activities import Activities
from stream_server.http.agui.agent_messages import NO_RESULT_YET, AgentMessages
from stream_server.http.agui.interrupts import build_interrupt, identify_interrupt, is_answerable
from stream_server.http.agui.requests import Message, RunInput
from stream_server.http.agui.run_document import RunDocument
from stream_server.http.chat.agent_steps import Thought, ToolEnded, ToolStarted
from stream_server.http.chat.answer import Activity, Answer, Failed, Finished, Step, name_instance
from stream_server.http.chat.answer_text import Append, Restart
from stream_server.protocol.frames import (
    AnyFrame,
    Reset,
    Result,
    RunTransition,
    Snapshot,
    TaskTransition,
)
from stream_server.protocol.input_frames import Input
from stream_server.protocol.schema import Json

PROTOCOL_VERSION = "1.0"
RUNNING = "running"


class AgUiTranslator:
    """Implements `stream_server.http.chat.translated_stream.Translator`.

    Args:
        key: The DAG run.
        wanted: The request.
    """

    def __init__(self, key: RunKey, wanted: RunInput) -> None:
        self.is_complete = False
        self._key, self._wanted = key, wanted
        self._message_id = key.run_id
        """Id of the message with the answer. It is the same in all responses about the DAG run."""

        messages = list(zip(wanted.messages, wanted.read_messages(), strict=True))
        self._history: list[Any] = [raw for raw, message in messages if self._is_history(message)]
        """The messages about other things than this DAG run."""

        shown = "".join([message.text for _, message in messages if message.id == self._message_id])
        self._answer = Answer(keeps_agent_steps=True, shown=shown)
        self._document = RunDocument(wanted.state)
        self._steps: dict[str, None] = {}
        """Names of the open steps, in their order."""

        self._activities = Activities(self._message_id)
        self._agents = AgentMessages(key.run_id, [message for _, message in messages])
        self._is_text_open = False
        self._result: Any = None

    def _is_history(self, message: Message) -> bool:
        # Clients keep the activities that a snapshot of the messages lacks, if it has none.
        return not message.is_of_run(self._message_id) and message.role != "activity"

    def start(self) -> bytes:
        return _encode([{**self._begin("RUN_STARTED"), "protocolVersion": PROTOCOL_VERSION, **_name_run(self._key)}])

    def translate(self, frame: AnyFrame) -> bytes:
        if self.is_complete:
            return b""
        events = [*self._build_events(frame)]
        if not self.is_complete:
            for step in self._answer.apply(frame):
                events += self._translate_step(step)
        return _encode(events)

    def _build_events(self, frame: AnyFrame) -> Iterator[Json]:
        match frame:
            case Snapshot():
                yield from self._begin_anew(frame)
            case TaskTransition() | RunTransition():
                yield from self._move(frame)
            case Input() if is_answerable(frame):
                yield from self._interrupt(frame)
                return
            case Reset():
                yield from self._end_steps()
                self._result = None
            case Result() if not frame.withheld:
                values = frame.results
                # Values as JSON, without decoding them.
                is_only = len(values) == 1 and not frame.references
                self._result = next(iter(values.values())) if is_only else values or None
        yield from self._activities.translate(frame)

    def _begin_anew(self, snapshot: Snapshot) -> Iterator[Json]:
        self._document.replace(snapshot)
        yield from self._end_steps()
        yield self._build_state()
        for task in snapshot.tasks:
            if task.state == RUNNING:
                yield from self._move_step(name_instance(task), task.state)

    def _move(self, frame: TaskTransition | RunTransition) -> Iterator[Json]:
        patch = self._document.apply(frame)
        if patch:
            yield {"type": "STATE_DELTA", "delta": patch}
        if isinstance(frame, TaskTransition):
            yield from self._move_step(name_instance(frame), frame.state)

    def _move_step(self, name: str, state: str | None) -> Iterator[Json]:
        if state == RUNNING and name not in self._steps:
            self._steps[name] = None
            yield {"type": "STEP_STARTED", "stepName": name}
        elif state not in WAITING_STATES and name in self._steps:
            del self._steps[name]
            yield {"type": "STEP_FINISHED", "stepName": name}

    def _end_steps(self) -> Iterator[Json]:
        for name in reversed(self._steps):
            yield {"type": "STEP_FINISHED", "stepName": name}
        self._steps.clear()

    def _interrupt(self, request: Input) -> Iterator[Json]:
        """End this run of the protocol. The DAG run continues, and a request with `resume` streams it again."""
        answer = self._wanted.answers.get(identify_interrupt(request))
        if answer is not None and answer.status == "resolved":
            # The journal does not have the answer yet.
            return
        self.is_complete = True
        # A call without a result would be one that the page has to carry out.
        yield from self._agents.end(NO_RESULT_YET)
        yield from self._end_text()
        yield from self._end_steps()
        yield self._build_state()
        asks = {"type": "interrupt", "interrupts": [build_interrupt(request)]}
        yield {**self._begin("RUN_FINISHED"), "outcome": asks if answer is None else {"type": "cancelled"}}

    def _translate_step(self, step: Step) -> list[Json]:
        match step:
            case Append():
                return self._append(step.text)
            case Restart():
                # No event takes text back. A snapshot of the messages replaces them.
                return [*self._replace_messages(""), *self._append(step.text)]
            case Thought() | ToolStarted() | ToolEnded():
                is_at_odds = self._agents.is_at_odds(step)
                return self._replace_messages(self._answer.sent_text) if is_at_odds else self._agents.translate(step)
            case Activity():
                # Clients get the states of tasks themselves.
                return []
            case Failed():
                self.is_complete = True
                reconnect = {"metadata": {"airflow": {"reconnect": not step.is_final}}}
                # Calls get their results in a later response, if there is one.
                agents = self._agents.end() if step.is_final else self._agents.end_reasoning()
                error = {"type": "RUN_ERROR", "message": step.message, "code": step.code, **reconnect}
                return [*agents, *self._end_text(), *self._end_steps(), error]
            case Finished():
                self.is_complete = True
                finished = {**self._begin("RUN_FINISHED"), "outcome": {"type": "success"}}
                if self._result is not None:
                    finished["result"] = self._result
                return [*self._agents.end(), *self._end_text(), *self._end_steps(), finished]

    def _append(self, text: str) -> list[Json]:
        if not text:
            return []
        events = self._agents.end_reasoning()
        if not self._is_text_open:
            self._is_text_open = True
            events.append({"type": "TEXT_MESSAGE_START", "messageId": self._message_id, "role": "assistant"})
        return [*events, {"type": "TEXT_MESSAGE_CONTENT", "messageId": self._message_id, "delta": text}]

    def _end_text(self) -> list[Json]:
        was_open, self._is_text_open = self._is_text_open, False
        return [{"type": "TEXT_MESSAGE_END", "messageId": self._message_id}] if was_open else []

    def _build_state(self) -> Json:
        return {"type": "STATE_SNAPSHOT", "snapshot": self._document.build_state()}

    def _replace_messages(self, text: str) -> list[Json]:
        events = [*self._agents.end_reasoning(), *self._end_text()]
        messages = [*self._history, *self._agents.replace(self._answer.restore_agent_steps())]
        if text:
            messages.append({"id": self._message_id, "role": "assistant", "content": text})
        return [*events, {"type": "MESSAGES_SNAPSHOT", "messages": messages}]

    def _begin(self, kind: str) -> Json:
        return {"type": kind, "threadId": self._wanted.thread_id, "runId": self._wanted.run_id}


def _name_run(key: RunKey) -> Json:
    return {"metadata": {"airflow": {"dag_id": key.dag_id, "run_id": key.run_id}}}


def _encode(events: list[Json]) -> bytes:
    return b"".join([b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events])

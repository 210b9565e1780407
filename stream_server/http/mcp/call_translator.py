"""Translates the frames of a run into the messages of the call that started it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.domain.run_state import RunKey
from stream_server.http.chat.answer import describe_activity
from stream_server.http.chat.answer_form import build_elicitation
from stream_server.http.mcp.messages import (
    RequestId,
    build_notification,
    build_request,
    build_response,
    encode_event,
)
from stream_server.http.mcp.references import CallReference, encode_reference
from stream_server.http.mcp.requests import MODERN_VERSION, SESSION_VERSIONS
from stream_server.http.mcp.results import build_result, build_text
from stream_server.protocol.frames import AnyFrame, Close, End, Failure, Reset, Result, TaskTransition, Waiting
from stream_server.protocol.input_frames import Input, InputAnswered, InputFrame
from stream_server.protocol.output_frames import Progress, ToolCall
from stream_server.protocol.schema import Json

RETRY_MS = 500
RELATED_TASK = "io.modelcontextprotocol/related-task"


class Call(NamedTuple):
    """A call of a tool, and what its client can do."""

    key: RunKey
    request_id: RequestId
    progress_token: RequestId | None
    version: str
    elicits: bool
    progress: int = 0
    """Progress notifications that earlier responses to the same call have sent."""

    has_schema: bool = False
    """Whether the tool has an output schema."""

    task_id: str | None = None
    """The task whose result the client waits for."""

    @property
    def is_modern(self) -> bool:
        return self.version == MODERN_VERSION

    @property
    def meta(self) -> Json:
        """Members of messages that belong to a task."""
        return {} if self.task_id is None else {"_meta": {RELATED_TASK: {"taskId": self.task_id}}}

    def refer(self, progress: int, asks: Input | None = None, asked_at: str | None = None) -> str:
        """Return the reference to this call, or to a request for human input of its run.

        Args:
            progress: Progress notifications that were sent.
            asks: The request.
            asked_at: When the task asked whose request the client has, if there is no `asks`.
        """
        head = (*self.key, self.request_id, self.progress_token, progress)
        if asks is None:
            return encode_reference(CallReference(*head, asked_at, has_schema=self.has_schema))
        instance = asks.asked_at.isoformat(), asks.task_id, asks.map_index
        return encode_reference(CallReference(*head, *instance, self.has_schema))


class CallTranslator:
    """Translator of one stream.

    Args:
        call: The call.
        asked_at: When the task asked whose request the client has already.
    """

    def __init__(self, call: Call, asked_at: str | None = None) -> None:
        self._call, self._shown_at = call, asked_at
        self._progress = call.progress
        self._outcome: Result | Failure | None = None
        self._open_request: tuple[str, int] | None = None
        """The task instance whose question the client has, and has not answered."""

        self.is_complete = False
        """Whether the call needs no more frames, although the run may continue."""

    def start(self) -> bytes:
        # A client resumes from an event id (2025-11-25, basic/transports, Resumability). Clients of earlier revisions
        # take an event without data for a message.
        return (
            f"id: {self._event_id}\nretry: {RETRY_MS}\ndata:\n\n".encode()
            if self._call.version == SESSION_VERSIONS[0]
            else b""
        )

    def translate(self, frame: AnyFrame) -> bytes:
        match frame:
            case _ if self.is_complete:
                return b""
            case Result() | Failure():
                self._outcome = frame
            case Reset():
                self._outcome = None
            case End():
                return self._respond(
                    build_result(self._call.key, self._outcome, frame, has_schema=self._call.has_schema)
                )
            case Close():
                return self._close(frame)
            case Input() if self._can_ask(frame):
                return self._report(frame) + self._ask(frame)
            case Progress() | ToolCall() | TaskTransition() | Waiting() | InputFrame():
                if isinstance(frame, InputAnswered) and (frame.task_id, frame.map_index) == self._open_request:
                    self._open_request = None
                return self._report(frame)
            case _:
                pass
        return b""

    @property
    def awaits_input(self) -> bool:
        """Whether the user may be answering a question."""
        return self._open_request is not None

    def expire(self, result: Json) -> bytes:
        """Return the response to a call that waits no longer."""
        return self._respond(result)

    def interrupt(self, retry_ms: int = RETRY_MS) -> bytes:
        """Return the end of a response that the client continues at another server."""
        self.is_complete = True
        if self._call.is_modern:
            # Without requests, the client calls again at once.
            again: Json = {"resultType": "input_required", "requestState": self._event_id}
            return encode_event(build_response(self._call.request_id, again))
        return f"retry: {retry_ms}\n\n".encode()

    def _respond(self, result: Json) -> bytes:
        self.is_complete = True
        if self._call.is_modern:
            result = {"resultType": "complete", **result}
        # Without an event id: there is nothing to resume.
        return encode_event(build_response(self._call.request_id, {**result, **self._call.meta}))

    def _can_ask(self, request: Input) -> bool:
        is_new = request.asked_at.isoformat() != self._shown_at
        return self._call.elicits and is_new and not request.withheld and request.reference is None

    def _ask(self, request: Input) -> bytes:
        reference = self._call.refer(self._progress, request)
        self._shown_at = request.asked_at.isoformat()
        elicitation = build_elicitation(request)
        if not self._call.is_modern:
            self._open_request = request.task_id, request.map_index
            params = {**elicitation, **self._call.meta}
            return encode_event(build_request(reference, "elicitation/create", params), self._next_event_id())
        self.is_complete = True
        required: Json = {
            "resultType": "input_required",
            "inputRequests": {request.task_id: {"method": "elicitation/create", "params": elicitation}},
            "requestState": reference,
        }
        return encode_event(build_response(self._call.request_id, required))

    def _close(self, close: Close) -> bytes:
        if not close.reconnect:
            run = f"Run {self._call.key.run_id!r} continues, but its result is not sent: "
            return self._respond(build_text(run + close.reason, is_error=True))
        return self.interrupt(close.retry_ms or RETRY_MS)

    def _report(self, frame: AnyFrame) -> bytes:
        text = describe_activity(frame)
        if text is None or self._call.progress_token is None:
            return b""
        self._progress += 1
        params: Json = {"progressToken": self._call.progress_token, "progress": self._progress, "message": text}
        params |= self._call.meta
        return encode_event(build_notification("notifications/progress", params), self._next_event_id())

    @property
    def _event_id(self) -> str:
        return self._call.refer(self._progress, asked_at=self._shown_at)

    def _next_event_id(self) -> str | None:
        return None if self._call.is_modern else self._event_id

"""The frames: each thing that a client can see, as one JSON object with its `type` first.

All transports send the same objects. What is encoded is encoded once, in `Wire`, however many clients watch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from stream_server.close_codes import CloseCode
from stream_server.cursor import Cursor
from stream_server.row_frames import (
    Chunk,
    Frame,
    Moment,
    Progress,
    Report,
    RowFrame,
    RunFrame,
    RunTransition,
    Said,
    TaskTransition,
)

__all__ = [
    "Chunk",
    "Frame",
    "Moment",
    "Progress",
    "Report",
    "RowFrame",
    "RunFrame",
    "RunTransition",
    "Said",
    "TaskTransition",
]
"""Of those born of rows, so that all frames can be imported from here."""

NO_STATUS = "no_status"
"""Key under which instances without a state are counted, as in Airflow's own statistics."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a DAG run."""

    state: str | None
    """`queued`, `running`, `success` or `failed`, and what later versions of Airflow add."""

    queued_at: Moment | None
    """When it was queued last."""

    start_date: Moment | None
    """When it began; `null` before."""

    end_date: Moment | None
    """When it ended; `null` before."""

    clear_number: int
    """How often the run was cleared."""


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a task instance."""

    task_id: str
    """The task."""

    map_index: int
    """Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet."""

    try_number: int
    """Which try it is, counted from 1; 0 before the first."""

    state: str | None
    """As Airflow names it; `null` before the task is scheduled."""

    start_date: Moment | None
    end_date: Moment | None


class Snapshot(RunFrame, frozen=True, kw_only=True, tag="snapshot", omit_defaults=True):
    """All that is known of the run at this moment; what follows goes on from here."""

    run: RunInfo
    """The run itself."""

    tasks: list[TaskInfo]
    """The task instances."""

    result_tasks: list[str]
    """Tasks whose return values answer the caller, as far as they are known yet."""

    counts: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """Instances per state, by task, for mapped tasks with too many instances to list in `tasks`."""


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where to get a value that is too large to be sent."""

    href: str
    """Path below Airflow's address."""

    bytes: int
    """Size of the value as JSON text."""


class Result(RunFrame, frozen=True, kw_only=True, tag="result", omit_defaults=True):
    """The answer: what the result tasks returned. The run may still go on."""

    results: dict[str, msgspec.Raw]
    """JSON value by task, as the database holds it; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] = msgspec.field(default_factory=dict)
    """By task, where to get a value that is too large to be sent."""

    withheld: bool = False
    """Whether there are values that the caller may not read; then there are neither `results` nor `references`."""

    seq: int | None = None
    """Row that completed the answer; absent where it was complete before the stream began."""

    at: Moment | None = None


FAILURE_REASONS = (
    "task_failed",
    "task_upstream_failed",
    "task_skipped",
    "task_removed",
    "run_failed",
    "run_deleted",
)
"""Why an answer will not come. Clients of an older version may meet one that they don't know."""


class Failure(RunFrame, frozen=True, kw_only=True, tag="failure", omit_defaults=True):
    """It is certain that the answer will not come."""

    reason: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(FAILURE_REASONS)})]
    """What became of the task instance at fault, or of the run where no task is."""

    task_id: str | None = None
    """The task at fault."""

    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    """State of the task instance at fault, or of the run where no task is."""

    predicted: bool = False
    """Whether Airflow has yet to write down what makes it certain."""

    seq: int | None = None
    """Row that made it certain; absent where it was certain before the stream began."""

    at: Moment | None = None


ResetReason: TypeAlias = Literal[
    "cleared",
    "retried",
    "revoked",
    "journal_changed",
    "transitions_lost",
    "cursor_expired",
    "cursor_foreign",
    "cursor_damaged",
    "access_changed",
]
"""What a server of this version may say. Clients of an older version may meet one that they don't know."""


class Reset(Frame, frozen=True, kw_only=True, tag="reset", omit_defaults=True):
    """Forget what was said; a snapshot follows. In a stream of many runs none does, and no run is named."""

    dag_id: str | None = None
    run_id: str | None = None
    reason: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(get_args(ResetReason))})]
    """Why what was said is worth nothing any more.

    `cleared`, `retried`, `revoked`: an outcome was taken back, or what a task had said. `journal_changed`: the database
    was replaced or set back. `transitions_lost`: something was not written down. `cursor_expired`, `cursor_foreign`,
    `cursor_damaged`: the client came back with a cursor older than the journal, of another journal, or that is none.
    `access_changed`: the client came back, and may read values now that were withheld from him.
    """


class Resumed(Frame, frozen=True, kw_only=True, tag="resumed", omit_defaults=True):
    """The stream goes on where the client was: what was missed follows, and then what comes."""

    dag_id: str | None = None
    run_id: str | None = None
    since: str
    """Cursor that the client came back with."""


class End(RunFrame, frozen=True, kw_only=True, tag="end"):
    """The stream is over; nothing comes after it."""

    state: str | None
    """State of the run; `None` where the run was deleted."""

    outcome: Literal["result", "failure", "none"]
    """What the caller was told; `none` where no task answers."""


class Close(Frame, frozen=True, kw_only=True, tag="close"):
    """The connection ends, but the stream does not."""

    code: Annotated[int, msgspec.Meta(extra_json_schema={"enum": [int(code) for code in CloseCode]})]
    """Also the close code of a WebSocket. Below 4500 the client should connect again, from 4500 on it should not."""

    reason: str
    """The same in words, for people."""

    reconnect: bool
    """Whether the client should connect again; what clients go by that don't know the code."""

    retry_ms: int | None = None
    """How long to wait before connecting again, in milliseconds."""


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Nothing happened, and the connection is alive. A frame, since scripts can't see SSE comments."""


class AuthExpiring(Frame, frozen=True, kw_only=True, tag="auth_expiring"):
    """The token is about to expire. The client can send another one, and the connection goes on."""

    expires_at: Moment
    """When it does."""


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """What the client asked for on a WebSocket was done."""

    op: Literal["subscribe", "unsubscribe", "ping", "auth"]
    """What was done."""

    id: str
    """What the client called it; empty where it gave no name."""


class Refusal(Frame, frozen=True, kw_only=True, tag="error"):
    """What the client asked for on a WebSocket was refused. All else goes on."""

    id: str
    """What the client called it; empty where it could not be read."""

    problem: str
    """The `type` of the problem, as in `application/problem+json` (RFC 9457)."""

    title: str
    """The same in words."""

    status: int
    """The HTTP status code that a request of its own would have been answered with."""

    detail: str
    """What was wrong, and what would be right."""


AnyFrame: TypeAlias = (
    Snapshot
    | TaskTransition
    | RunTransition
    | Chunk
    | Progress
    | Result
    | Failure
    | Reset
    | Resumed
    | End
    | Close
    | Ping
    | AuthExpiring
    | Ack
    | Refusal
)

_LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\u0085\u2028\u2029")
"""Ends of lines for Python's `splitlines`, and so for some clients, that JSON need not escape."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyFrame] = msgspec.json.Decoder(AnyFrame)


class Wire:
    """A frame on its way to any number of clients, encoded once for each transport."""

    def __init__(self, frame: AnyFrame, cursor: Cursor | None = None) -> None:
        self.frame = frame
        self.cursor = cursor
        """Place of a client that has received this frame; only the last frame of a batch has it."""
        self._framed: dict[Callable[[Wire], bytes], bytes] = {}

    @cached_property
    def type(self) -> str:
        """The frame's `type`."""
        return type_of(self.frame)

    @cached_property
    def json(self) -> bytes:
        """The frame as JSON, in one line whatever a client takes for the end of one."""
        json = _encoder.encode(self.frame)
        for character, escaped in _LINE_ENDS:
            if character in json:
                json = json.replace(character, escaped)
        return json

    @cached_property
    def text(self) -> str:
        """The frame as JSON with its cursor as the last member, as WebSocket and NDJSON send it."""
        if self.cursor is None:
            return self.json.decode()
        # A cursor is made of digits, letters and ".:,", none of which JSON escapes.
        return f'{self.json[:-1].decode()},"cursor":"{self.cursor}"}}'

    def framed(self, frame: Callable[[Wire], bytes]) -> bytes:
        """Return `frame(self)`, computed once for each way to frame."""
        framed = self._framed.get(frame)
        if framed is None:
            framed = self._framed[frame] = frame(self)
        return framed


def type_of(frame: AnyFrame) -> str:
    """Return the `type` of a frame."""
    return str(type(frame).__struct_config__.tag)


def decode(text: bytes | str) -> AnyFrame:
    """Read a frame. Unknown members are ignored, so that older clients understand newer servers.

    Raises:
        msgspec.ValidationError: The text is no frame, or one of a type that this version does not know.
    """
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        raise msgspec.ValidationError(str(error)) from error

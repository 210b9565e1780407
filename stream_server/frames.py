"""The frames: each thing that a client can see, as one JSON object with its `type` first.

All transports send the same objects. What is encoded is encoded once, in `Wire`, however many clients watch.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from stream_server.cursor import Cursor

NO_STATUS = "no_status"
"""Key under which instances without a state are counted, as in Airflow's own statistics."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all frames share."""


class RunFrame(Frame, frozen=True, kw_only=True):
    """A frame about one DAG run."""

    dag_id: str
    run_id: str


class RowFrame(RunFrame, frozen=True, kw_only=True):
    """A frame born of one journal row."""

    seq: int
    """Identity of the row; together with `type` it is unique in the stream."""

    at: datetime
    """When the row was written, UTC."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a DAG run."""

    state: str | None
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None
    clear_number: int


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """State of a task instance."""

    task_id: str
    map_index: int
    try_number: int
    state: str | None
    start_date: datetime | None
    end_date: datetime | None


class Snapshot(RunFrame, frozen=True, kw_only=True, tag="snapshot", omit_defaults=True):
    """All that is known of the run at this moment; what follows goes on from here."""

    run: RunInfo
    tasks: list[TaskInfo]
    result_tasks: list[str]
    """Tasks whose return values answer the caller, as far as they are known yet."""

    counts: dict[str, dict[str, int]] = {}
    """Instances per state, by task, for mapped tasks with too many instances to list in `tasks`."""


class TaskTransition(RowFrame, frozen=True, kw_only=True, tag="task"):
    """A task instance changed. An instance with `map_index` 0 or more takes the place of the one with -1."""

    task_id: str
    map_index: int
    try_number: int
    state: str | None
    previous_state: str | None


class RunTransition(RowFrame, frozen=True, kw_only=True, tag="run"):
    """The run changed."""

    state: str | None
    previous_state: str | None
    clear_number: int


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

    references: dict[str, Reference] = {}
    seq: int | None = None
    """Row that completed the answer; absent where it was complete before the stream began."""

    at: datetime | None = None


class Failure(RunFrame, frozen=True, kw_only=True, tag="failure", omit_defaults=True):
    """It is certain that the answer will not come."""

    reason: str
    """`task_failed`, `task_upstream_failed`, `task_skipped`, `task_removed`, `run_failed` or `run_deleted`."""

    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    state: str | None = None
    predicted: bool = False
    """Whether Airflow has yet to write down what makes it certain."""

    seq: int | None = None
    at: datetime | None = None


ResetReason: TypeAlias = Literal[
    "cleared",
    "retried",
    "revoked",
    "journal_changed",
    "transitions_lost",
    "cursor_expired",
    "cursor_foreign",
    "cursor_damaged",
]


class Reset(RunFrame, frozen=True, kw_only=True, tag="reset"):
    """Forget what was said; a snapshot follows."""

    reason: ResetReason


class Resumed(RunFrame, frozen=True, kw_only=True, tag="resumed"):
    """The stream goes on where the client was: what was missed follows, and then what comes."""

    since: str
    """Cursor that the client came back with."""


class End(RunFrame, frozen=True, kw_only=True, tag="end"):
    """The stream is over; nothing comes after it."""

    state: str | None
    """State of the run; `None` where the run was deleted."""

    outcome: Literal["result", "failure", "none"]


class Close(Frame, frozen=True, kw_only=True, tag="close"):
    """The connection ends, but the stream does not."""

    code: int
    reason: str
    reconnect: bool
    retry_ms: int | None = None
    """How long to wait before connecting again, in milliseconds."""


class Ping(Frame, frozen=True, kw_only=True, tag="ping"):
    """Nothing happened, and the connection is alive. A frame, since scripts can't see SSE comments."""


AnyFrame: TypeAlias = (
    Snapshot | TaskTransition | RunTransition | Result | Failure | Reset | Resumed | End | Close | Ping
)

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
        """The frame as JSON."""
        return _encoder.encode(self.frame)

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

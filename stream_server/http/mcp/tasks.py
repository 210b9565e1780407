"""Runs as tasks of the protocol. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import NamedTuple

from stream_server.domain.run_state import RunKey
from stream_server.http.chat.answer_form import build_elicitation
from stream_server.http.chat.open_requests import OpenRequests
from stream_server.http.mcp.references import CallReference, encode_reference
from stream_server.http.mcp.results import build_result
from stream_server.protocol.frames import AnyFrame, End, Failure, Reset, Result, RunTransition, Snapshot
from stream_server.protocol.input_frames import Input
from stream_server.protocol.schema import Json

POLL_INTERVAL_MS = 1000

WORKING, INPUT_REQUIRED, COMPLETED, FAILED, CANCELLED = "working", "input_required", "completed", "failed", "cancelled"


class RunFrames(NamedTuple):
    """What a client that connects now learns about a run."""

    snapshot: Snapshot | None
    outcome: Result | Failure | None
    end: End | None
    requests: list[Input]
    """Open requests for human input."""

    clear_number: int = 0
    """How often the run was cleared."""

    @property
    def has_outcome(self) -> bool:
        return self.outcome is not None or self.end is not None


class RunCollector:
    """What a client knows about a run after some frames."""

    def __init__(self) -> None:
        self.collected = RunFrames(None, None, None, [])
        self._requests = OpenRequests()

    @property
    def is_empty(self) -> bool:
        return self.collected.snapshot is None

    def apply(self, frame: AnyFrame) -> None:
        match frame:
            case Snapshot():
                self.collected = self.collected._replace(snapshot=frame, clear_number=frame.run.clear_number)
            case RunTransition():
                self.collected = self.collected._replace(clear_number=frame.clear_number)
            case Result() | Failure():
                self.collected = self.collected._replace(outcome=frame)
            case Reset():
                # Open requests follow again.
                self._requests.apply(frame)
                self.collected = self.collected._replace(outcome=None, requests=[])
            case End():
                self.collected = self.collected._replace(end=frame)
            case _ if self._requests.apply(frame):
                self.collected = self.collected._replace(requests=self._requests.requests)
            case _:
                pass


def collect_frames(frames: Iterable[AnyFrame]) -> RunFrames:
    collector = RunCollector()
    for frame in frames:
        collector.apply(frame)
    return collector.collected


def build_task(task_id: str, status: str, created_at: datetime | None, *, is_modern: bool) -> Json:
    """Return a task. The names of its times differ between revisions."""
    now = datetime.now(timezone.utc)
    created = created_at or now
    task: Json = {
        "taskId": task_id,
        "status": status,
        "createdAt": created.isoformat(),
        "lastUpdatedAt": now.isoformat(),
    }
    names = ("ttlMs", "pollIntervalMs") if is_modern else ("ttl", "pollInterval")
    return {**task, names[0]: None, names[1]: POLL_INTERVAL_MS}


def build_current_task(
    task_id: str, reference: CallReference, frames: RunFrames, *, is_modern: bool, elicits: bool, is_cancelled: bool
) -> Json:
    """Return the task of a run as it is now, and from revision 2026-07-28 on what the client needs to go on.

    Args:
        task_id: The id as the client has it: an earlier version may have encoded the reference in another way.
        reference: The run of the task, and its tool.
        frames: The run.
        is_modern: Whether the revision is 2026-07-28.
        elicits: Whether the client can ask its user.
        is_cancelled: Whether a client has cancelled the task. If it had a result before, it is completed.
    """
    created_at = None if frames.snapshot is None else frames.snapshot.run.queued_at
    requests = [one for one in frames.requests if elicits and not one.withheld and one.reference is None]
    if is_cancelled and not isinstance(frames.outcome, Result):
        return build_task(task_id, CANCELLED, created_at, is_modern=is_modern)
    if frames.has_outcome:
        is_failed = isinstance(frames.outcome, Failure) and not is_modern
        task = build_task(task_id, FAILED if is_failed else COMPLETED, created_at, is_modern=is_modern)
        if is_modern:
            task["result"] = build_result(reference.key, frames.outcome, frames.end, has_schema=reference.has_schema)
        return task
    if not requests:
        return build_task(task_id, WORKING, created_at, is_modern=is_modern)
    task = build_task(task_id, INPUT_REQUIRED, created_at, is_modern=is_modern)
    if is_modern:
        task["inputRequests"] = dict(_build_input_request(reference.key, request) for request in requests)
    return task


def _build_input_request(key: RunKey, asks: Input) -> tuple[str, Json]:
    """Return the request of a task instance, and its key."""
    name = encode_reference(
        CallReference(*key, asked_at=asks.asked_at.isoformat(), task_id=asks.task_id, map_index=asks.map_index)
    )
    return name, {"method": "elicitation/create", "params": build_elicitation(asks)}

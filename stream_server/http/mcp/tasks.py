"""Runs as tasks of the protocol. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import NamedTuple

from stream_server.domain.run_state import RunKey
from stream_server.http.mcp.elicitation import build_elicitation
from stream_server.http.mcp.references import CallReference, encode_reference
from stream_server.http.mcp.results import build_result
from stream_server.protocol.frames import AnyFrame, End, Failure, Result, Snapshot, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered
from stream_server.protocol.schema import Json

POLL_INTERVAL_MS = 1000

ASKING_STATES = ("running", "deferred", "awaiting_input")
"""States of a task instance whose request for human input is open."""

WORKING, INPUT_REQUIRED, COMPLETED, FAILED, CANCELLED = "working", "input_required", "completed", "failed", "cancelled"


class RunFrames(NamedTuple):
    """What a client that connects now learns about a run."""

    snapshot: Snapshot | None
    outcome: Result | Failure | None
    end: End | None
    requests: list[Input]
    """Open requests for human input."""

    @property
    def has_outcome(self) -> bool:
        return self.outcome is not None or self.end is not None


def collect_frames(frames: Iterable[AnyFrame]) -> RunFrames:
    snapshot: Snapshot | None = None
    outcome: Result | Failure | None = None
    end: End | None = None
    requests: dict[tuple[str, int, int | None], Input] = {}
    for frame in frames:
        match frame:
            case Snapshot():
                snapshot = frame
            case Result() | Failure():
                outcome = frame
            case End():
                end = frame
            case Input():
                requests[frame.task_id, frame.map_index, frame.iteration] = frame
            case InputAnswered() | TaskTransition() if not _keeps_request(frame):
                requests.pop((frame.task_id, frame.map_index, frame.iteration), None)
            case _:
                pass
    return RunFrames(snapshot, outcome, end, [*requests.values()])


def _keeps_request(frame: InputAnswered | TaskTransition) -> bool:
    """Whether a request for human input stays open, as far as a frame shows."""
    return isinstance(frame, TaskTransition) and frame.state in ASKING_STATES


def _encode_task_id(key: RunKey) -> str:
    return encode_reference(CallReference(key.dag_id, key.run_id))


def build_task(key: RunKey, status: str, created_at: datetime | None, *, is_modern: bool) -> Json:
    """Return a task. The names of its times differ between revisions."""
    now = datetime.now(timezone.utc)
    created = created_at or now
    task: Json = {
        "taskId": _encode_task_id(key),
        "status": status,
        "createdAt": created.isoformat(),
        "lastUpdatedAt": now.isoformat(),
    }
    names = ("ttlMs", "pollIntervalMs") if is_modern else ("ttl", "pollInterval")
    return {**task, names[0]: None, names[1]: POLL_INTERVAL_MS}


def build_current_task(key: RunKey, frames: RunFrames, *, is_modern: bool, elicits: bool) -> Json:
    """Return the task of a run as it is now, and from revision 2026-07-28 on what the client needs to go on."""
    created_at = None if frames.snapshot is None else frames.snapshot.run.queued_at
    asks = next((one for one in frames.requests if elicits and not one.withheld and one.reference is None), None)
    if frames.has_outcome:
        is_failed = isinstance(frames.outcome, Failure) and not is_modern
        task = build_task(key, FAILED if is_failed else COMPLETED, created_at, is_modern=is_modern)
        if is_modern:
            task["result"] = build_result(key, frames.outcome, frames.end)
        return task
    if asks is None:
        return build_task(key, WORKING, created_at, is_modern=is_modern)
    task = build_task(key, INPUT_REQUIRED, created_at, is_modern=is_modern)
    if is_modern:
        task["inputRequests"] = {
            encode_reference(
                CallReference(*key, None, None, 0, asks.asked_at.isoformat(), asks.task_id, asks.map_index)
            ): {
                "method": "elicitation/create",
                "params": build_elicitation(asks),
            }
        }
    return task

"""What a client knows about a run, folded from its frames as `docs/protocol.md` describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg

from stream_server.domain.prediction import END_OF_STATE
from stream_server.domain.run_state import RETRACTING_STATES, RunKey
from stream_server.domain.snapshot_tasks import MAX_LISTED_INSTANCES
from support.streams import Frame

NO_STATUS = "no_status"

Index = int | tuple[int, int]
"""`map_index`; of a task in a loop (Airflow 3.4), the iteration and `map_index`."""

Instance = tuple[str, Index]
"""A task and an index."""


class Tables(NamedTuple):
    """A run as Airflow's tables have it."""

    run: tuple[str | None, int] | None
    """State and clear number; `None` if it does not exist."""

    tasks: dict[str, object]
    """State and try number by index; the number of instances by state, where a snapshot does not list them."""


@dataclass
class RunKnowledge:
    """The state of a run, its output and its outcome, as far as a client has received them."""

    run: tuple[str | None, int] | None = None
    """State and clear number."""

    instances: dict[Instance, tuple[str | None, int]] = field(default_factory=dict)
    """State and try number."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Instances by state, for tasks that a snapshot does not list."""

    output: dict[tuple[str, Index, int], dict[int, Any]] = field(default_factory=dict)
    """Values by index, for each instance and try."""

    requests: dict[Instance, Frame] = field(default_factory=dict)
    """The `input` frame of each instance, with the members of `input_answered`, and without those of the row."""

    outcome: dict[str, Any] | None = None
    """The `result` or `failure` frame without what depends on when a client joined: the row that caused it, and whether
    a failure was predicted."""

    end: str | None = None
    """The outcome that the `end` frame names."""

    missing: dict[str, Any] = field(default_factory=dict)
    """Why there is neither a result nor a failure: `reason` and `task_id` of the `end` frame."""

    waiting: dict[str, Any] | None = None
    """Why the run waits: `reason` and `active_runs`. It depends on when a client joined, and is not in `everything`."""

    def copy(self) -> RunKnowledge:
        return deepcopy(self)

    def apply(self, frame: Frame) -> None:
        """Apply a frame. Frames without information about the run change nothing."""
        handler = getattr(self, f"_apply_{frame['type']}", None)
        if handler is not None:
            handler(frame)

    def apply_all(self, frames: Iterable[Frame]) -> RunKnowledge:
        for frame in frames:
            self.apply(frame)
        return self

    @property
    def tables(self) -> Tables:
        """The part that Airflow's tables have, in the form of `read_tables`."""
        return Tables(self.run, _summarize(self.instances.items(), self.counts))

    @property
    def everything(self) -> dict[str, object]:
        """All that must be the same for every client of the run."""
        return {
            "tables": self.tables,
            "output": self.output,
            "requests": self.requests,
            "outcome": self.outcome,
            "end": self.end,
            "missing": self.missing,
        }

    @property
    def essentials(self) -> dict[str, object]:
        """The same without the cause of a failure: a client keeps the first one, and others can follow."""
        failure = self.outcome is not None and self.outcome["type"] == "failure"
        return {**self.everything, "outcome": "failure" if failure else self.outcome}

    def _apply_reset(self, _frame: Frame) -> None:
        self.__init__()  # type: ignore[misc]

    def _apply_resumed(self, _frame: Frame) -> None:
        self.waiting = None

    def _apply_waiting(self, frame: Frame) -> None:
        found: dict[str, Any] = {name: frame[name] for name in ("reason", "active_runs") if name in frame}
        self.waiting = found if found["reason"] is not None else None

    def _apply_snapshot(self, frame: Frame) -> None:
        self._apply_reset(frame)
        self.run = frame["run"]["state"], frame["run"]["clear_number"]
        for task in frame["tasks"]:
            self.instances[task["task_id"], index_of(task)] = task["state"], task["try_number"]
        self.counts = {task_id: Counter(states) for task_id, states in frame.get("counts", {}).items()}

    def _apply_task(self, frame: Frame) -> None:
        self.waiting = None
        task_id, index = frame["task_id"], index_of(frame)
        if (counts := self.counts.get(task_id)) is not None:
            counts[frame["previous_state"] or NO_STATUS] -= 1
            counts[frame["state"] or NO_STATUS] += 1
            return
        if frame["map_index"] >= 0:
            self.instances.pop((task_id, index_of({**frame, "map_index": -1})), None)
        self.instances[task_id, index] = frame["state"], frame["try_number"]
        if (request := self.requests.get((task_id, index))) is not None:
            is_over = request["try_number"] != frame["try_number"] or frame["state"] in RETRACTING_STATES
            # An answer may follow the frame of the task that it resumes.
            if is_over or ("answered_at" not in request and frame["state"] in END_OF_STATE):
                del self.requests[task_id, index]

    def _apply_input(self, frame: Frame) -> None:
        known = self.requests.get((frame["task_id"], index_of(frame)), {})
        is_answered = known.get("asked_at") == frame["asked_at"] and "answered_at" in known
        assert not is_answered or known["try_number"] != frame["try_number"], f"asked again after the answer: {frame}"
        # The deadline is known only while the task waits.
        self.requests[frame["task_id"], index_of(frame)] = _without(frame, "seq", "at", "cursor", "expires_at")

    def _apply_input_answered(self, frame: Frame) -> None:
        request = self.requests[frame["task_id"], index_of(frame)]
        assert (request["try_number"], request["asked_at"]) == (frame["try_number"], frame["asked_at"])
        assert "answered_at" not in request, f"a second answer: {frame}"
        request.update(_without(frame, "seq", "at", "cursor", "type"))

    def _apply_run(self, frame: Frame) -> None:
        self.waiting = None
        self.run = frame["state"], frame["clear_number"]

    def _apply_chunk(self, frame: Frame) -> None:
        of_try = self.output.setdefault((frame["task_id"], index_of(frame), frame["try_number"]), {})
        assert frame["index"] not in of_try or of_try[frame["index"]] == frame["value"], f"two values: {frame}"
        of_try[frame["index"]] = frame["value"]

    def _apply_progress(self, frame: Frame) -> None:
        # Only the last report counts, and a client that joins late gets no other.
        of_try = self.output.setdefault((frame["task_id"], index_of(frame), frame["try_number"]), {})
        of_try[-1] = frame["value"]

    def _apply_result(self, frame: Frame) -> None:
        assert self.outcome is None, f"a second outcome without a reset: {frame}"
        self.outcome = {name: value for name, value in frame.items() if name not in {"seq", "at", "predicted"}}

    _apply_failure = _apply_result

    def _apply_end(self, frame: Frame) -> None:
        assert self.end in {None, frame["outcome"]}, f"another end: {frame}"
        self.end = frame["outcome"]
        self.missing = {name: frame[name] for name in ("reason", "task_id") if name in frame}


def index_of(members: Mapping[str, Any]) -> Index:
    """Return the index of the instance that a frame, or an entry of a snapshot, is about."""
    iteration, map_index = members.get("iteration"), int(members["map_index"])
    return map_index if iteration is None else (int(iteration), map_index)


def _without(frame: Frame, *names: str) -> Frame:
    return {name: value for name, value in frame.items() if name not in names}


async def read_tables(connection: asyncpg.Connection[asyncpg.Record], key: RunKey) -> Tables:
    """Return what Airflow's tables have of a run."""
    run = await connection.fetchrow("SELECT state, clear_number FROM dag_run WHERE dag_id = $1 AND run_id = $2", *key)
    instances = await read_instances(connection, key)
    return Tables((run["state"], run["clear_number"]) if run is not None else None, _summarize(instances.items(), {}))


async def read_instances(
    connection: asyncpg.Connection[asyncpg.Record], key: RunKey
) -> dict[tuple[str, int], tuple[str | None, int]]:
    """Return state and try number of each task instance of a run, by task and `map_index`."""
    rows = await connection.fetch(
        "SELECT task_id, map_index, state, try_number FROM task_instance WHERE dag_id = $1 AND run_id = $2"
        " ORDER BY task_id, map_index",
        *key,
    )
    return {(row["task_id"], row["map_index"]): (row["state"], row["try_number"]) for row in rows}


def _summarize(
    instances: Iterable[tuple[Instance, tuple[str | None, int]]], counts: dict[str, Counter[str]]
) -> dict[str, object]:
    """Return the instances of each task, or their number by state where a snapshot does not list them."""
    of_tasks: dict[str, dict[Index, tuple[str | None, int]]] = {}
    for (task_id, index), found in instances:
        of_tasks.setdefault(task_id, {})[index] = found
    summary: dict[str, object] = {task_id: +counter for task_id, counter in counts.items()}
    for task_id, by_index in of_tasks.items():
        if len(by_index) > MAX_LISTED_INSTANCES:
            summary[task_id] = Counter(state or NO_STATUS for state, _ in by_index.values())
        else:
            summary[task_id] = by_index
    return summary

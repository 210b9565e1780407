"""One DAG run without a database: Airflow's writes, the journal rows they cause, and the frames that result."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple

import msgspec

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import ReturnValue, ReturnValues, WatchOptions
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.run_state import FINAL_RUN_STATES, RunKey, RunState
from stream_server.domain.task_instances import SourceRow, TaskInstance
from stream_server.domain.transition import OUTPUT_KEY, RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.domain.transition_frames import is_output
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import AnyFrame, Result, RunInfo
from support.airflow_sql import CHAIN, serialized_dag

KEY = RunKey("ask_llm", "manual__2026-01-01T00:00:00+00:00")
EPOCH = "7f3a"
FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""States in which a task instance has ended (`airflow.utils.state.State.finished`)."""


def at(seconds: int) -> datetime:
    """Return a time, in seconds from the start of the test's own clock."""
    return datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)


def graph(tasks: Mapping[str, Sequence[str]] = CHAIN, teardowns: Mapping[str, bool] | None = None) -> Graph:
    """Return the DAG as Airflow would serialise it; of the chain, `clean_up` is a teardown."""
    if tasks is CHAIN and teardowns is None:
        teardowns = {"clean_up": False}
    return Graph.parse(msgspec.json.encode(serialized_dag("ask_llm", tasks, teardowns)))


def types(frames: Sequence[AnyFrame]) -> list[str]:
    return [str(type(frame).__struct_config__.tag) for frame in frames]


class Xcom(NamedTuple):
    """A `return_value` in Airflow's `xcom` table."""

    at: datetime
    json: str
    dag_result: bool | None


class History:
    """Airflow's tables for one run, and the rows that the triggers write. A call is a transaction, unless grouped."""

    def __init__(self, dag: Graph | None = None, *, key: RunKey = KEY) -> None:
        self.graph = dag or graph()
        self.key = key
        self.rows: dict[tuple[str, int], TaskInstance] = {}
        self.xcoms: dict[tuple[str, int], Xcom] = {}
        self.journal: list[Transition] = []
        self.deleted = False
        self.marked: Collection[str] | None = None
        """Tasks with Airflow 3.3's own mark; `None` before 3.3."""

        self.earlier_marks: Mapping[str, bool] | None = None
        self._txid = 100
        self._grouped = False
        self._started = 0
        """Row with which the open transaction started."""

        self.resuming: set[tuple[str, int]] = set()
        """Task instances that wait after a deferral, with a `next_method`."""

        self._emitted: dict[tuple[str, int, int], int] = {}
        with self.transaction():
            self.run = RunInfo(state=None, queued_at=at(0), start_date=None, end_date=None, clear_number=0)
            self.set_run("queued")
            for task_id in self.graph.tasks:
                self.set_task(task_id, None)

    # What a reader sees.

    def cursor(self) -> JournalPosition:
        """Return the position of a reader that has read everything."""
        return JournalPosition(EPOCH, self._txid + 1, self._txid + 1)

    def state(self) -> RunState:
        """Return the run as the query `run_snapshot` reads it from Airflow's tables."""
        run = RunState(self.key, self.run, self.graph)
        run.earlier_marks = self.earlier_marks
        for (task_id, map_index), row in self.rows.items():
            xcom = self.xcoms.get((task_id, map_index))
            is_of_try = xcom is not None and row.start_date is not None and xcom.at >= row.start_date
            keeps = row.state == "running" or (task_id, map_index) in self.resuming
            pushed = xcom is not None and (row.state == "success" or (is_of_try and keeps))
            has_value = xcom is not None and (pushed or row.state != "running")
            mark = xcom.dag_result if xcom is not None and has_value else None
            source = SourceRow() if pushed else None
            run.add_instance(task_id, map_index, row._replace(pushed=source, has_value=has_value, mark=mark))
        for transition in filter(is_output, self.journal):
            run.apply(transition)
        run.take_retraction()
        return run

    def output_length(self, instance: tuple[str, int]) -> int:
        """Return how many items of output a task instance has emitted in its current try."""
        return self._emitted.get((*instance, self.rows[instance].try_number), 0)

    def values(self, task_ids: Collection[str]) -> ReturnValues:
        """Return what the query `return_values` reads."""
        return {
            instance: ReturnValue(len(xcom.json), xcom.json)
            for instance, xcom in self.xcoms.items()
            if instance[0] in task_ids
        }

    def indexes(self, task_id: str) -> list[int]:
        return sorted(map_index for name, map_index in self.rows if name == task_id)

    # What Airflow writes.

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._txid += 1
        self._grouped, self._started = True, len(self.journal) + 1
        yield
        self._grouped = False

    def set_task(self, task_id: str, state: str | None, map_index: int = -1) -> None:
        """Change a task instance; a new try starts when it is scheduled from no state or `up_for_retry`."""
        instance = (task_id, map_index)
        before = self.rows.get(instance) or TaskInstance(None, 0)
        if before.state == "running":
            self._delete_earlier_value(instance, before)
        row = before._replace(state=state)
        now = self._now()
        if state == "scheduled" and before.state in {None, "up_for_retry"}:
            row = row._replace(try_number=before.try_number + 1)
        if state == "deferred":
            self.resuming.add(instance)
        elif state == "running":
            if instance not in self.resuming:
                row = row._replace(start_date=now)
            self.resuming.discard(instance)
        elif state in FINISHED or state == "up_for_retry":
            row = row._replace(end_date=now)
            self.resuming.discard(instance)
        elif state is None:
            # A cleared task starts over, also one that was deferred (`TaskInstance.clear_next_method_args`).
            self.resuming.discard(instance)
        self._write_task(instance, row, before.state)

    def start(self, task_id: str, map_index: int = -1) -> None:
        """Move a task instance to `running`, one transaction for each step."""
        for state in ("scheduled", "queued", "running"):
            self.set_task(task_id, state, map_index)

    def push(self, task_id: str, value: object = None, map_index: int = -1, *, dag_result: bool | None = None) -> None:
        """Push a return value, whatever the state of the task: the Execution API does not check it."""
        value = f"try {self.rows[task_id, map_index].try_number}" if value is None else value
        json = msgspec.json.encode(value).decode()
        if dag_result is None and self.marked is not None:
            dag_result = task_id in self.marked
        transition = self._write(TransitionKind.XCOM, task_id=task_id, map_index=map_index)
        self.journal[-1] = transition._replace(xcom_key=RETURN_VALUE_KEY, dag_result=dag_result)
        self.xcoms[task_id, map_index] = Xcom(transition.at, json, dag_result)

    def emit_output(
        self,
        task_id: str,
        *chunks: object,
        map_index: int = -1,
        index: int | None = None,
        try_number: int | None = None,
    ) -> None:
        """Emit output of a task, whatever its state: the Execution API does not check it."""
        number = self.rows[task_id, map_index].try_number if try_number is None else try_number
        first = self._emitted.get((task_id, map_index, number), 0) if index is None else index
        batch = {"try_number": number, "index": first, "items": [{"chunk": chunk} for chunk in chunks]}
        transition = self._write(TransitionKind.XCOM, task_id=task_id, map_index=map_index)
        self.journal[-1] = transition._replace(xcom_key=OUTPUT_KEY, body=msgspec.json.encode(batch).decode())
        self._emitted[task_id, map_index, number] = first + len(chunks)

    def succeed(self, task_id: str, map_index: int = -1) -> None:
        """End a running task as its worker does."""
        self.set_task(task_id, "success", map_index)

    def succeed_directly(self, task_id: str, map_index: int = -1) -> None:
        """Set an instance to `success` without a worker, as the scheduler does with an `EmptyOperator`."""
        row = self.rows[task_id, map_index]
        done = row._replace(state="success", try_number=row.try_number + 1, start_date=self._now())
        self._write_task((task_id, map_index), done, row.state)

    def run_task(self, task_id: str, value: object = None, map_index: int = -1) -> None:
        """Run a task instance that returns a value."""
        self.start(task_id, map_index)
        self.push(task_id, value, map_index)
        self.succeed(task_id, map_index)

    def expand(self, task_id: str, length: int) -> None:
        """Expand a mapped task (`airflow-facts` 2.7): -1 becomes 0 with no change of state, the others are new."""
        with self._in_transaction():
            del self.rows[task_id, -1]
            self.xcoms.pop((task_id, -1), None)
            for map_index in range(length):
                self.set_task(task_id, None, map_index)

    def expand_to_nothing(self, task_id: str) -> None:
        """Skip a mapped task that has no values, as the scheduler does: without dates."""
        row = self.rows[task_id, -1]
        self._write_task((task_id, -1), row._replace(state="skipped"), row.state)

    def set_run(self, state: str, *, clear_number: int | None = None) -> None:
        now = self._now()
        self.run = RunInfo(
            state=state,
            queued_at=now if state == "queued" else self.run.queued_at,
            start_date=None if state == "queued" else now if state == "running" else self.run.start_date,
            end_date=now if state in FINAL_RUN_STATES else None,
            clear_number=self.run.clear_number if clear_number is None else clear_number,
        )
        transition = self._write(TransitionKind.RUN)
        self.journal[-1] = transition._replace(state=state, **_run_columns(self.run))

    def time_out(self) -> None:
        """End the run as its timeout does: it fails, and everything unfinished is skipped without an end date."""
        with self.transaction():
            self.set_run("failed")
            for instance, row in list(self.rows.items()):
                if row.state not in FINISHED:
                    self._write_task(instance, row._replace(state="skipped"), row.state)

    def mark_run(self, state: Literal["success", "failed"]) -> None:
        """End the run as a person does (`mark_tasks._set_dag_run_terminal_state`), within milliseconds."""
        active = {"running", "deferred", "up_for_reschedule", "awaiting_input"}
        unfinished = [(*instance, row.state) for instance, row in self.rows.items() if row.state not in FINISHED]
        unfinished = [one for one in unfinished if not self.graph.tasks[one[0]].is_teardown]
        with self.transaction():
            for task_id, map_index, _ in (one for one in unfinished if one[2] not in active):
                self.skip_from_outside(task_id, map_index)
            self.set_run(state)
            for task_id, map_index, _ in (one for one in unfinished if one[2] in active):
                self.set_task(task_id, state, map_index)

    def skip_from_outside(self, task_id: str, map_index: int = -1) -> None:
        """Skip an instance that does not run, as the scheduler or the API does (`TaskInstance.set_state`)."""
        row, now = self.rows[task_id, map_index], self._now()
        skipped = row._replace(state="skipped", start_date=row.start_date or now, end_date=row.end_date or now)
        self._write_task((task_id, map_index), skipped, row.state)

    def clear(self, *task_ids: str, counted: bool = True) -> None:
        """Clear tasks (`airflow-facts` 2.4). Airflow 3.0 and 3.1 do not count what is cleared of a running run."""
        with self._in_transaction():
            if self.run.state in FINAL_RUN_STATES:
                self.set_run("queued", clear_number=self.run.clear_number + 1)
            elif counted:
                assert self.run.state is not None, "the first transaction gives the run a state"
                self.set_run(self.run.state, clear_number=self.run.clear_number + 1)
            for task_id in task_ids:
                for map_index in self.indexes(task_id):
                    running = self.rows[task_id, map_index].state == "running"
                    self.set_task(task_id, "restarting" if running else None, map_index)

    def delete(self) -> None:
        self._write(TransitionKind.RUN_DELETED)
        self.deleted = True

    def _delete_earlier_value(self, instance: tuple[str, int], row: TaskInstance) -> None:
        """Delete what an earlier try pushed, as the worker does soon after the task has started."""
        xcom = self.xcoms.get(instance)
        if xcom is not None and row.start_date is not None and xcom.at < row.start_date:
            del self.xcoms[instance]

    def _write_task(self, instance: tuple[str, int], row: TaskInstance, previous_state: str | None) -> None:
        self.rows[instance] = row
        transition = self._write(TransitionKind.TASK, task_id=instance[0], map_index=instance[1])
        self.journal[-1] = transition._replace(
            try_number=row.try_number,
            state=row.state,
            previous_state=previous_state,
            start_date=row.start_date,
            end_date=row.end_date,
        )

    def _write(self, kind: TransitionKind, task_id: str | None = None, map_index: int | None = None) -> Transition:
        if not self._grouped:
            self._txid += 1
        seq = len(self.journal) + 1
        transition = Transition(seq, self._txid, self._now(), kind, *self.key, task_id, map_index)
        self.journal.append(transition)
        return transition

    def _now(self) -> datetime:
        """Return the time of the next row: a second after that of the last one, or a millisecond in a transaction."""
        if self._grouped and self._started:
            return at(self._started) + timedelta(milliseconds=len(self.journal) + 1 - self._started)
        return at(len(self.journal) + 1)

    @contextmanager
    def _in_transaction(self) -> Iterator[None]:
        """Join the open transaction, or start a new one."""
        if self._grouped:
            yield
        else:
            with self.transaction():
                yield


class SimulatedReader:
    """Follows a history as a run feed does for one subscriber group: each batch, then the values it needs."""

    def __init__(
        self,
        history: History,
        *results: str,
        until: Literal["result", "run"] = "result",
        confirm: Literal["push", "success"] = "push",
    ) -> None:
        self.history = history
        self.run = history.state()
        self.answer = OutcomeTracker(WatchOptions(results, until, confirm), self.run.info.clear_number)
        self.frames: list[AnyFrame] = []
        self._read = len(history.journal)
        self.initial_frames = self._take(self.answer.update(self.run))

    def catch_up(self) -> list[AnyFrame]:
        """Apply all rows committed since the last call as one batch; return the new frames."""
        return self.advance() + self.receive()

    def advance(self) -> list[AnyFrame]:
        """Apply one batch without reading the values that are needed."""
        batch, self._read = self.history.journal[self._read :], len(self.history.journal)
        for transition in batch:
            self.run.apply(transition)
        return self._take(self.answer.update(self.run, self.run.take_retraction()))

    def receive(self) -> list[AnyFrame]:
        """Read the needed values, as they are in the database now, until none is needed."""
        frames: list[AnyFrame] = []
        while wanted := self.answer.values_needed:
            frames += self._take(self.answer.add_values(self.run, wanted, self.history.values(wanted)))
        return frames

    def _take(self, frames: list[AnyFrame]) -> list[AnyFrame]:
        self.frames += frames
        return frames


def comparable_state(run: RunState) -> dict[str, Any]:
    """Return the comparable part of a state. Pushes count while their task runs; the source of a value does not."""
    return {
        "run": run.info,
        "deleted": run.is_deleted,
        "tasks": {
            task_id: {
                index: (
                    *(one.state, one.try_number, one.start_date, one.end_date),
                    one.state == "running" and one.pushed is not None,
                )
                for index, one in instances.items()
            }
            for task_id, instances in run.tasks.items()
        },
        "output": run.output.frames,
        "marks": run.native_marks,
    }


def results_of(frames: Sequence[AnyFrame]) -> list[dict[str, object]]:
    """Return the values of the `result` frames."""
    return [
        {task_id: msgspec.json.decode(value) for task_id, value in frame.results.items()}
        for frame in frames
        if isinstance(frame, Result)
    ]


def _run_columns(run: RunInfo) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("queued_at", "start_date", "end_date", "clear_number")}

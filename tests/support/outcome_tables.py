"""Airflow's tables of one run in SQLite, as the server reads them: journal rows of triggers, and a `RunSource`.

The triggers write the rows that those of the journal write (`journal/sql/functions.sql`), and the queries return what
`journal/sql/queries.sql` returns. A moment counts as a committed transaction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from importlib import import_module
from typing import Any, NamedTuple
from uuid import UUID

from airflow.models.dag_version import DagVersion
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance as AirflowInstance
from sqlalchemy import and_, case, null, or_, select, text
from sqlalchemy.orm import Session

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import ReturnValue, ReturnValues
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.task_instances import SourceRow, TaskInstance
from stream_server.domain.transition import RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import RunInfo, Waiting
from support.outcome_airflow import HAS_ROW_PER_TRY
from support.outcome_clock import CLOCK
from support.outcome_dags import DAG_ID

KEY = RunKey(DAG_ID, "run")
EPOCH = "7f3a"

_COLUMNS = (
    "kind, task_id, map_index, try_number, state, previous_state, clear_number, queued_at, start_date, end_date,"
    " xcom_key, dag_result, iteration"
)
_TASK_ROW = "'task', NEW.task_id, NEW.map_index, NEW.try_number, NEW.state"
_RUN_ROW = "'run', NULL, NULL, NULL, NEW.state"
_CHANGED_ROW = "'run_changed', " + ", ".join(["NULL"] * 12)
_DATES = "NEW.start_date, NEW.end_date, NULL, NULL"
_OUTSIDE = f"{_DATES}, NULL"


def _write_row(values: str) -> str:
    return f" BEGIN INSERT INTO journal_row ({_COLUMNS}) VALUES ({values}); END"


_RUN_TRIGGERS = {
    "INSERT ON dag_run": _write_row(f"{_RUN_ROW}, NULL, NEW.clear_number, NEW.queued_at, {_OUTSIDE}"),
    "UPDATE ON dag_run WHEN NEW.state IS NOT OLD.state OR NEW.clear_number <> OLD.clear_number": _write_row(
        f"{_RUN_ROW}, OLD.state, NEW.clear_number, NEW.queued_at, {_OUTSIDE}"
    ),
}
_INSTANCE_TRIGGERS = {
    "INSERT ON task_instance": _write_row(f"{_TASK_ROW}, NULL, NULL, NULL, {_OUTSIDE}"),
    "UPDATE ON task_instance WHEN NEW.state IS NOT OLD.state OR NEW.try_number IS NOT OLD.try_number"
    " OR NEW.map_index <> OLD.map_index": _write_row(f"{_TASK_ROW}, OLD.state, NULL, NULL, {_OUTSIDE}"),
    "UPDATE ON task_instance WHEN NEW.dag_version_id IS NOT OLD.dag_version_id": _write_row(_CHANGED_ROW),
    "DELETE ON task_instance": _write_row(_CHANGED_ROW),
    "INSERT ON xcom WHEN NEW.key = 'return_value'": _write_row(
        "'xcom', NEW.task_id, NEW.map_index, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NEW.key, NEW.dag_result, NULL"
    ),
}

_NO_REGION = f"'{'0' * 32}'"


def _select_index(of: str) -> str:
    """Return the `map_index` of Airflow's API (`journal.queries.MAP_INDEX`)."""
    node = f"(SELECT node_id FROM dynamic_region WHERE id = {of}.region_id)"
    return f"CASE WHEN {of}.region_id = {_NO_REGION} OR {node} = {of}.task_id THEN {of}.region_index ELSE -1 END"


def _select_iteration(of: str) -> str:
    """Return the iteration of a task loop (`journal.queries.ITERATION`)."""
    parent = f"(SELECT parent_region_index FROM dynamic_region WHERE id = {of}.region_id AND node_id = {of}.task_id)"
    is_mapped = f"EXISTS (SELECT 1 FROM dynamic_region WHERE id = {of}.region_id AND node_id = {of}.task_id)"
    return (
        f"CASE WHEN {of}.region_id = {_NO_REGION} THEN NULL WHEN {is_mapped} THEN {parent} ELSE {of}.region_index END"
    )


_LAST_TRY = (
    "CASE WHEN NEW.try_number > 0 AND (NEW.state IS NULL OR NEW.state = 'up_for_retry') THEN NEW.try_number - 1"
    " ELSE NEW.try_number END"
)
_TRY_DATES = f"{_DATES}, {_select_iteration('NEW')}"
_TRY_ROW = f"'task', NEW.task_id, {_select_index('NEW')}, {_LAST_TRY}, NEW.state"
_VALUE_ROW = (
    f" BEGIN INSERT INTO journal_row ({_COLUMNS}) SELECT 'xcom', n.task_id, {_select_index('n')}, NULL, NULL, NULL,"
    f" NULL, NULL, NULL, NULL, NEW.key, NEW.dag_result, {_select_iteration('n')} FROM task_instance n"
    " WHERE n.id = NEW.task_instance_id AND n.working_set; END"
)
_TRY_TRIGGERS = {
    # The old row of a try that is given up was running.
    "INSERT ON task_instance WHEN NEW.working_set AND"
    " (NEW.state IS NULL OR NEW.state = 'up_for_retry' OR NEW.try_number = 0)": _write_row(
        f"{_TRY_ROW}, CASE WHEN NEW.state = 'up_for_retry' THEN 'running' END, NULL, NULL, {_TRY_DATES}"
    ),
    "UPDATE ON task_instance WHEN NEW.working_set"
    " AND (NEW.state IS NOT OLD.state OR NEW.region_index <> OLD.region_index)"
    " AND coalesce(NEW.state, '') <> 'up_for_retry'": _write_row(f"{_TRY_ROW}, OLD.state, NULL, NULL, {_TRY_DATES}"),
    "UPDATE ON task_instance WHEN (NEW.working_set AND NEW.dag_version_id IS NOT OLD.dag_version_id)"
    " OR (OLD.working_set AND NEW.working_set IS NULL AND NEW.archived_reason = 'superseded')": _write_row(
        _CHANGED_ROW
    ),
    "DELETE ON task_instance WHEN OLD.working_set": _write_row(_CHANGED_ROW),
    "INSERT ON xcom_v2 WHEN NEW.key = 'return_value'": _VALUE_ROW,
    "UPDATE ON xcom_v2 WHEN NEW.key = 'return_value'": _VALUE_ROW,
}
"""As `journal/sql/functions_tries.sql`."""

TRIGGERS = [
    f"CREATE TABLE journal_row (id INTEGER PRIMARY KEY AUTOINCREMENT, {_COLUMNS})",
    *(
        f"CREATE TRIGGER journal_{number} AFTER {event}{action}"
        for number, (event, action) in enumerate(
            {**(_TRY_TRIGGERS if HAS_ROW_PER_TRY else _INSTANCE_TRIGGERS), **_RUN_TRIGGERS}.items()
        )
    ),
]
"""The triggers of a SQLite database, and the table that they write to."""


class RunRow(NamedTuple):
    """A run in the database."""

    state: str
    clear_number: int
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None


class InstanceRow(NamedTuple):
    """A task instance in the database, with its return value."""

    state: str | None
    try_number: int
    start_date: datetime | None
    end_date: datetime | None
    version: UUID | None
    value_at: datetime | None
    """When its return value was written; `None` if it has none."""

    value: Any
    dag_result: bool | None
    iteration: int | None = None
    """Of a task in a loop (Airflow 3.4)."""

    @property
    def has_current_value(self) -> bool:
        """Whether the return value comes from the current try, and counts."""
        if self.value_at is None:
            return False
        is_of_try = self.start_date is not None and self.value_at >= self.start_date
        return self.state == "success" or (self.state == "running" and is_of_try)


class Tables(NamedTuple):
    """A run in the database."""

    run: RunRow
    instances: Mapping[tuple[str, int], InstanceRow]
    """In loops those of the newest iteration."""

    version: UUID | None
    """The newest version of the DAG that the run has taken up."""

    earlier: tuple[tuple[str, int, InstanceRow], ...] = ()
    """The instances of earlier iterations of loops."""

    @property
    def rows(self) -> list[tuple[str, int, InstanceRow]]:
        """All instances; those of the newest iteration come last."""
        return [*self.earlier, *((*instance, row) for instance, row in self.instances.items())]


_INSTANCE: Any = AirflowInstance.__table__
_VERSION: Any = DagVersion.__table__

_RUN = select(*(DagRun.__table__.c[name] for name in ("state", "clear_number", "queued_at", "start_date", "end_date")))


def _select_instances(index: Any, iteration: Any, tried: Any, values: Any, has_value: Any) -> Any:
    """Return the query for task instances.

    Args:
        index: Their `map_index`.
        iteration: The iteration of the loop around them.
        tried: The number of their last try.
        values: The table of XComs.
        has_value: Condition of the XComs of a task instance.
    """
    columns = (_INSTANCE.c[name] for name in ("start_date", "end_date", "dag_version_id"))
    return (
        select(
            _INSTANCE.c.task_id,
            index.label("map_index"),
            _INSTANCE.c.state,
            tried,
            *columns,
            values.c.timestamp,
            values.c.value,
            values.c.dag_result,
            iteration.label("iteration"),
            _VERSION.c.version_number,
        )
        .outerjoin(values, and_(has_value, values.c.key == RETURN_VALUE_KEY))
        .outerjoin(_VERSION, _VERSION.c.id == _INSTANCE.c.dag_version_id)
        .order_by(_INSTANCE.c.task_id, "map_index", "iteration")
    )


def _select_per_version() -> Any:
    models = import_module("airflow.models.xcom")
    if not HAS_ROW_PER_TRY:
        values = models.XComModel.__table__
        has_value = and_(
            *(values.c[name] == _INSTANCE.c[name] for name in ("dag_id", "run_id", "task_id", "map_index"))
        )
        return _select_instances(_INSTANCE.c.map_index, null(), _INSTANCE.c.try_number, values, has_value)
    values, row = models.XComModelV2.__table__, _INSTANCE.c
    region = import_module("airflow.models.dynamic_region").DynamicRegion.__table__
    is_outside = row.region_id == UUID(int=0)
    is_mapped = region.c.node_id == row.task_id
    is_waiting = and_(row.try_number > 0, or_(row.state.is_(None), row.state == "up_for_retry"))
    chosen = _select_instances(
        case((or_(is_outside, is_mapped), row.region_index), else_=-1),
        case((is_outside, null()), (is_mapped, region.c.parent_region_index), else_=row.region_index),
        case((is_waiting, row.try_number - 1), else_=row.try_number),
        values,
        values.c.task_instance_id == row.id,
    )
    return chosen.outerjoin(region, region.c.id == row.region_id).where(row.working_set.is_(True))


_INSTANCES = _select_per_version()
"""Made once, and of tables, not of classes: SQLAlchemy needs most of the time to make them."""


def read_tables(session: Session) -> Tables:
    """Return the run."""
    session.flush()
    connection = session.connection()
    run = connection.execute(_RUN).one()
    instances: dict[tuple[str, int], InstanceRow] = {}
    earlier: list[tuple[str, int, InstanceRow]] = []
    newest: tuple[int, UUID | None] = (0, None)
    for task_id, map_index, state, *rest, number in connection.execute(_INSTANCES):
        name = None if state is None else str(getattr(state, "value", state))
        before = instances.get((task_id, map_index))
        if before is not None:
            earlier.append((task_id, map_index, before))
        instances[task_id, map_index] = InstanceRow(name, *rest)
        newest = max(newest, (number or 0, instances[task_id, map_index].version), key=lambda one: one[0])
    if newest[1] is None:
        # Without instances, the newest version of the DAG stands in.
        newest = 0, session.scalar(select(DagVersion.id).order_by(DagVersion.version_number.desc()).limit(1))
    return Tables(RunRow(str(getattr(run[0], "value", run[0])), *run[1:]), instances, newest[1], tuple(earlier))


class RunTables:
    """The tables and the journal of the run of a case. Implements `stream_server.hub.watched_runs.RunSource`.

    Args:
        session: Where the run is.
        earlier_marks: What an earlier run of the DAG has shown (`RunState.earlier_marks`).
    """

    def __init__(self, session: Session, earlier_marks: Mapping[str, bool] | None) -> None:
        self.session = session
        self.current: Tables = read_tables(session)
        self.journal: list[Transition] = []
        self._earlier_marks = earlier_marks
        self._graphs: dict[UUID, Graph] = {}
        self._txid = 1000
        self._last_id = session.execute(text("SELECT coalesce(max(id), 0) FROM journal_row")).scalar_one()

    @property
    def position(self) -> JournalPosition:
        """The position of a reader that has read everything."""
        return JournalPosition(EPOCH, self._txid + 1, self._txid + 1)

    def commit(self) -> list[Transition]:
        """End a transaction, and return its rows."""
        self.current = read_tables(self.session)
        rows = self.session.execute(
            text(f"SELECT id, {_COLUMNS} FROM journal_row WHERE id > :last ORDER BY id"),
            {"last": self._last_id},
        ).all()
        self._txid += 1
        batch = [_build_transition(row, self._txid) for row in rows]
        if batch:
            self._last_id = batch[-1].seq
        self.journal += batch
        return batch

    async def read_run(self, key: RunKey) -> tuple[RunState, JournalPosition]:
        run = self.current.run
        info = RunInfo(
            state=run.state,
            queued_at=run.queued_at,
            start_date=run.start_date,
            end_date=run.end_date,
            clear_number=run.clear_number,
        )
        state = RunState(key, info, self._graph())
        state.earlier_marks = self._earlier_marks
        for task_id, map_index, row in self.current.rows:
            instance = TaskInstance(
                state=row.state,
                try_number=row.try_number,
                start_date=row.start_date,
                end_date=row.end_date,
                pushed=SourceRow() if row.has_current_value else None,
                has_value=row.value_at is not None and (row.has_current_value or row.state != "running"),
                mark=row.dag_result if row.has_current_value or row.state != "running" else None,
            )
            state.add_instance(task_id, map_index, instance, row.iteration)
        return state, self.position

    async def read_history(
        self, _key: RunKey | None, since: JournalPosition, *, output: bool = True
    ) -> list[Transition] | None:
        del output
        return [row for row in self.journal if not since.is_visible(row.txid)]

    async def is_foreign(self, _cursor: JournalPosition) -> bool:
        return False

    async def read_waiting(self, _keys: Sequence[RunKey]) -> Mapping[RunKey, Waiting]:
        return {}

    async def read_values(self, _key: RunKey, task_ids: Collection[str]) -> ReturnValues:
        values: dict[tuple[str, int], ReturnValue] = {}
        for instance, row in self.current.instances.items():
            if instance[0] in task_ids and row.value_at is not None:
                value = json.dumps(row.value)
                values[instance] = ReturnValue(len(value), value)
        return values

    async def reconnect(self) -> None:
        return None

    def _graph(self) -> Graph | None:
        version = self.current.version
        if version is None:
            return None
        if version not in self._graphs:
            stored = self.session.scalar(select(SerializedDagModel).where(SerializedDagModel.dag_version_id == version))
            assert stored is not None, "each version is stored with its DAG"
            self._graphs[version] = Graph.parse(json.dumps(stored.data))
        return self._graphs[version]


def _build_transition(row: Any, txid: int) -> Transition:
    seq, kind, task_id, map_index, try_number, *others = row
    state, previous, clear_number, queued, start, end, key, marked, iteration = others
    return Transition(
        seq,
        txid,
        CLOCK(),
        TransitionKind(kind),
        *KEY,
        task_id,
        map_index,
        try_number,
        state,
        previous,
        clear_number,
        _parse_time(queued),
        _parse_time(start),
        _parse_time(end),
        key,
        None if marked is None else bool(marked),
        iteration=iteration,
    )


def _parse_time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).replace(tzinfo=timezone.utc)

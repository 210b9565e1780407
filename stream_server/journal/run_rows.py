"""What the rows of a run mean: its state, its return values, and why it waits."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from stream_server.domain.outcome import ReturnValue, ReturnValues
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.task_instances import SourceRow, TaskInstance
from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.journal.human_input import parse_request
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import RunInfo, Waiting


def build_waiting(row: asyncpg.Record) -> Waiting:
    return Waiting(**row)


def build_values(rows: Sequence[asyncpg.Record]) -> ReturnValues:
    return {(row["task_id"], row["map_index"]): ReturnValue(row["bytes"], row["json"]) for row in rows}


def build_run_state(rows: Sequence[asyncpg.Record], key: RunKey, output_bytes: int) -> tuple[RunState, set[UUID]]:
    """Return the state of a run, and the DAG versions of its instances."""
    first = rows[0]
    run = RunState(
        key,
        RunInfo(
            state=first["run_state"],
            queued_at=first["run_queued_at"],
            start_date=first["run_start_date"],
            end_date=first["run_end_date"],
            clear_number=first["clear_number"] or 0,
        ),
        output_bytes=output_bytes,
    )
    for row in rows:
        if row["task_id"] is None:
            continue
        instance = TaskInstance(
            state=row["state"],
            try_number=row["try_number"] or 0,
            start_date=row["start_date"],
            end_date=row["end_date"],
            pushed=SourceRow() if row["pushed"] else None,
            # A value of an earlier try is about to be deleted.
            has_value=row["has_value"] and (row["pushed"] or row["state"] != "running"),
            mark=row["dag_result"] if row["pushed"] or row["state"] != "running" else None,
        )
        run.add_instance(row["task_id"], row["map_index"], instance, row["iteration"])
        if row["request"] is not None and (request := parse_request(key, row["request"])) is not None:
            run.requests.load(request)
    return run, {row["dag_version_id"] for row in rows} - {None}


def apply_output(rows: Sequence[asyncpg.Record], run: RunState, position: JournalPosition) -> None:
    """Apply output to a run, as far as it is visible at a position."""
    for seq, txid, at, kind, dag_id, run_id, task_id, map_index, iteration, body in rows:
        if position.is_visible(txid):
            output = Transition(seq, txid, at, TransitionKind(kind), dag_id, run_id, task_id, map_index)
            run.apply(output._replace(xcom_key=OUTPUT_KEY, iteration=iteration, body=body))
    run.take_retraction()

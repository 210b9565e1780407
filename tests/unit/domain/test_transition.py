from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import pytest

from stream_server.domain.transition import Transition, TransitionKind, UndecodableRow, decode_row
from stream_server.journal.reader import SkippedRow, decode_rows, log_skipped_rows
from stream_server.journal.undecodable_rows import LoggedCauses

AT = datetime(2026, 11, 22, 10, tzinfo=timezone.utc)
TASK = {"kind": "task", "dag_id": "chat", "run_id": "r1", "task_id": "answer", "map_index": -1}
TI_ID = UUID(int=7)
RUN = {"kind": "run", "dag_id": "chat", "run_id": "r1", "task_id": None, "map_index": None}


def row(columns: Mapping[str, object], seq: int = 1) -> tuple[Any, ...]:
    """Return a row as the queries do, all columns that are not given NULL."""
    given = {"seq": seq, "txid": 8, "at": AT, **columns}
    return tuple(given.get(name) for name in Transition._fields[:19])


@pytest.mark.parametrize("kind", list(TransitionKind))
def test_a_row_of_each_kind_is_decoded(kind: TransitionKind) -> None:
    transition = decode_row(row({**TASK, "kind": kind.value}))
    assert transition == Transition(1, 8, AT, kind, "chat", "r1", "answer", -1)


@pytest.mark.parametrize("kind", ["run", "run_deleted"])
def test_a_run_needs_no_task(kind: str) -> None:
    assert decode_row(row({**RUN, "kind": kind})) is not None


def test_a_request_for_human_input_needs_no_run() -> None:
    request = decode_row(row({"kind": "input", "ti_id": TI_ID, "state": "open"}))
    assert (request.kind, request.ti_id, request.state) == (TransitionKind.INPUT, TI_ID, "open")


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({**TASK, "kind": "asset"}, "unknown kind 'asset'"),
        ({**TASK, "dag_id": None, "run_id": None}, "dag_id and run_id of kind 'task' must not be NULL"),
        ({**TASK, "task_id": None}, "task_id of kind 'task' must not be NULL"),
        ({**TASK, "kind": "xcom", "map_index": None}, "map_index of kind 'xcom' must not be NULL"),
        ({**RUN, "run_id": None}, "run_id of kind 'run' must not be NULL"),
        ({**RUN, "kind": "run_deleted", "dag_id": None}, "dag_id of kind 'run_deleted' must not be NULL"),
    ],
)
def test_other_rows_name_the_cause(columns: dict[str, object], cause: str) -> None:
    with pytest.raises(UndecodableRow) as caught:
        decode_row(row(columns))
    assert str(caught.value) == cause


def test_undecodable_row_affects_only_itself() -> None:
    rows = [row(TASK, 1), row({"kind": "input"}, 2), row({"kind": "asset"}, 3), row(RUN, 4)]
    transitions, skipped = decode_rows(rows)
    assert [one.seq for one in transitions] == [1, 2, 4]
    assert skipped == [SkippedRow(3, "unknown kind 'asset'")]


def test_each_cause_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    causes = LoggedCauses()
    for seq in range(3):
        log_skipped_rows([SkippedRow(seq, "one"), SkippedRow(seq + 10, "other")], causes)
    prefix = "and all others with the same cause"
    assert [record.getMessage() for record in caplog.records] == [
        f"Skipped row 0 of the journal, {prefix}: one",
        f"Skipped row 10 of the journal, {prefix}: other",
    ]

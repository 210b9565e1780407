"""Reading of many rows, on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import Transition
from stream_server.journal import reader
from stream_server.journal.connection import close_connection, connect
from stream_server.journal.reader import JournalReader, SkippedRow, decode_rows
from stream_server.journal.row_slices import ROWS_AT_ONCE, fetch_in_slices
from stream_server.journal.run_store import RunStore
from support.airflow_sql import AirflowSql, serialized_dag

NUMBERS = "SELECT number, $1::text AS name FROM generate_series(1, $2::integer) AS number ORDER BY number DESC -- last"


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 4 * ROWS_AT_ONCE])
@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("query", [NUMBERS, NUMBERS.replace("-- last", "LIMIT 1000")])
async def test_the_rows_are_those_of_a_fetch(journal: str, count: int, in_transaction: bool, query: str) -> None:
    connection = await connect(journal)
    try:
        if in_transaction:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                rows = await fetch_in_slices(connection, query, "a", count)
        else:
            rows = await fetch_in_slices(connection, query, "a", count)
        assert rows == await connection.fetch(query, "a", count)
        assert not connection.is_in_transaction()
    finally:
        await close_connection(connection)


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_a_large_dag_is_read_in_pieces(journal: str, airflow: AirflowSql, is_compressed: bool) -> None:
    document = serialized_dag("large", {f"{'é' * 200}_{number:04}": () for number in range(3000)})
    version = await airflow.add_serialized_dag("large", document)
    if is_compressed:
        await airflow.connection.execute(
            "UPDATE serialized_dag SET data = NULL, data_compressed = $2 WHERE dag_version_id = $1",
            version,
            zlib.compress(json.dumps(document).encode()),
        )
    key = RunKey("large", "r")
    await airflow.trigger(key, version, [])
    store = RunStore(journal, pool_size=1, max_result_bytes=1000)
    try:
        run, _ = await store.read_run(key)
    finally:
        await store.close()
    assert run.graph is not None
    assert run.graph.tasks.keys() == {f"{'é' * 200}_{number:04}" for number in range(3000)}


async def test_a_large_batch_is_decoded_beside_the_event_loop(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def decode(rows: Iterable[tuple[Any, ...]]) -> tuple[list[Transition], list[SkippedRow]]:
        threads.append(threading.current_thread())
        return decode_rows(rows)

    monkeypatch.setattr(reader, "decode_rows", decode)
    async with JournalReader.open(journal) as journal_reader:
        position = (await journal_reader.read_head()).position
        for count in (ROWS_AT_ONCE - 1, ROWS_AT_ONCE + 1):
            await journal_reader.connection.execute(
                "INSERT INTO stream_server.journal (kind, dag_id, run_id, task_id, map_index, try_number, state)"
                f" SELECT 'task', 'd', 'r', 't', n, 1, 'running' FROM generate_series(1, {count}) AS n"
            )
            batch = await journal_reader.read_after(position)
            assert [transition.map_index for transition in batch.transitions] == list(range(1, count + 1))
            position = batch.position
    assert [thread is threading.main_thread() for thread in threads] == [True, False]

"""Tables of an Airflow that does not exist yet."""

from __future__ import annotations

import logging

import pytest

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.server import RunningServer
from support.streams import sse


async def test_rows_that_differ_in_an_unknown_column_are_not_merged_silently(
    server: RunningServer, airflow: AirflowSql, run: RunKey, caplog: pytest.LogCaptureFixture
) -> None:
    await airflow.connection.execute(
        "ALTER TABLE task_instance DROP CONSTRAINT task_instance_composite_key CASCADE, ADD COLUMN region_index integer"
    )
    version = await airflow.connection.fetchval("SELECT id FROM dag_version LIMIT 1")
    await airflow.add_instance(run, version, "answer", -1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            async with sse(server.url, run) as events:
                await events.next()
    (message,) = [record.getMessage() for record in caplog.records if "newer Airflow" in record.getMessage()]
    assert "2 rows of task answer with map_index -1" in message

"""Entries of other servers for a run (`waiters`). The server reads them once, soon after a run is first watched."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql


async def register_other_server(airflow: AirflowSql, run: RunKey) -> None:
    """Write the entry of another server whose clients wait for a run."""
    await airflow.connection.execute(
        "INSERT INTO stream_server.waiters VALUES ($1, $2, gen_random_uuid(), now() + interval '1 hour')", *run
    )


async def has_read_other_servers(airflow: AirflowSql, run: RunKey) -> bool:
    """Whether the server has read the entries of other servers for a run, and has released the connection."""
    noted = await airflow.connection.fetchval(
        "SELECT count(*) FROM stream_server.waiters WHERE dag_id = $1 AND run_id = $2", *run
    )
    reading = await airflow.connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stream_server'"
        " AND datname = current_database() AND query LIKE '%stream_server.wait(%'"
    )
    return bool(noted > 1 and not reading)

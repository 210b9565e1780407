"""What other servers have noted of a run: the one look after that, soon after it is first watched, costs a query."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql


async def note_elsewhere(airflow: AirflowSql, run: RunKey) -> None:
    """Be another server, whose clients watch a run that shall be stopped when nobody does."""
    await airflow.connection.execute(
        "INSERT INTO stream_server.waiters VALUES ($1, $2, gen_random_uuid(), now() + interval '1 hour')", *run
    )


async def has_looked_for_others(airflow: AirflowSql, run: RunKey) -> bool:
    """Tell whether the server has found what another one has noted of the run, and given the connection back."""
    noted = await airflow.connection.fetchval(
        "SELECT count(*) FROM stream_server.waiters WHERE dag_id = $1 AND run_id = $2", *run
    )
    asking = await airflow.connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stream_server'"
        " AND datname = current_database() AND query LIKE '%stream_server.wait(%'"
    )
    return bool(noted > 1 and not asking)

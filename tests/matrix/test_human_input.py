"""Requests for human input on the versions of Airflow in which their tasks are deferred."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from matrix.environments import environment_python
from matrix.upgraded_databases import UpgradedDatabases
from matrix.versioned_sql import VersionedSql
from stream_server.cli.demo import template_cluster
from stream_server.cli.demo.airflow import Airflow
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.server import StreamServerProcess, server_environment
from support.airflow_callers import SECRET, make_token
from support.human_forms import DAG_ID, DAGS, Callers, HumanForms, check_human_forms
from support.postgres import DATA_DIR
from support.stack import QUIET

VERSIONS = ("3.1.8", "3.2.2")
"""From 3.3 on, tasks do not need a triggerer to wait: tests/airflow."""


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_request_is_answered_once_by_users_that_may(
    version: str, databases: UpgradedDatabases, tmp_path: Path
) -> None:
    url = await databases.copy_of(version)
    async with VersionedSql.open(url) as session:
        # The DAG in the copy has no file, so its runs would never end.
        await session.connection.execute("TRUNCATE dag, dag_run CASCADE")
    airflow = Airflow(
        tmp_path / "airflow",
        tmp_path,
        url,
        dags=[DAGS],
        bytecode=template_cluster.bytecode_dir(DATA_DIR / "cache"),
        triggerer=True,
        settings={"AIRFLOW__API_AUTH__JWT_SECRET": SECRET, **QUIET},
        python=environment_python(version),
    )
    server = StreamServerProcess(
        "stream_server",
        tmp_path,
        database_url=url,
        airflow_url=airflow.url,
        options=["--auth", "airflow", "--workers", "2"],
        environment=server_environment(),
    )
    try:
        airflow.start()
        await asyncio.to_thread(airflow.wait_until_healthy, ConsoleReporter())
        await asyncio.to_thread(airflow.wait_for_dags, [DAG_ID], ConsoleReporter())
        await asyncio.to_thread(server.start)
        with airflow.rest_client() as rest:
            callers = Callers(rest.token, make_token("another", "admin"), make_token("reader", "viewer"))
            await check_human_forms(HumanForms(server.url, rest, callers), waiting="deferred")
    finally:
        server.stop()
        await asyncio.to_thread(airflow.stop)

"""Requests for human input of all kinds, with the permissions of Airflow's simple auth manager."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from support.airflow_callers import make_token
from support.human_forms import DAG_ID, RUN_SECONDS, Callers, HumanForms, check_human_forms
from support.waiting import eventually


@pytest.fixture(scope="module")
def server(stack: DemoStack) -> Iterator[StreamServerProcess]:
    """A server with permissions and several worker processes."""
    server = stack.add_server(options=["--auth", "airflow", "--workers", "2"])
    server.start()
    yield server
    server.stop()


async def test_each_request_is_answered_once_by_users_that_may(
    server: StreamServerProcess, airflow: AirflowRestClient
) -> None:
    await asyncio.to_thread(eventually, lambda: airflow.get_dag(DAG_ID), RUN_SECONDS, f"{DAG_ID} is read")
    callers = Callers(airflow.token, make_token("another", "admin"), make_token("reader", "viewer"))
    await check_human_forms(HumanForms(server.url, airflow, callers), waiting="awaiting_input")

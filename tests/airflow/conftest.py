"""Airflow's API in a whole stack (`support.stack`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream_server.cli.demo.airflow_client import AirflowRest
    from stream_server.cli.demo.server import Server
    from stream_server.cli.demo.stack import DemoStack
    from support.airflow_callers import Denied


@pytest.fixture(scope="session")
def airflow(stack: DemoStack) -> Iterator[AirflowRest]:
    """Airflow's REST API, as its admin: ``airflow.trigger("chat_answer", {"teardown_seconds": 1})``."""
    with stack.rest() as rest:
        yield rest


@pytest.fixture(scope="session")
def token(airflow: AirflowRest) -> str:
    """A bearer token of Airflow's admin."""
    return airflow.token


@pytest.fixture(scope="module")
def guarded(stack: DemoStack) -> Iterator[Server]:
    """A server that asks Airflow, and often."""
    server = stack.replica(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def denied(denials: Denied) -> Iterator[Denied]:
    """What Airflow denies whom: nothing any more, after the test."""
    yield denials
    denials.set()

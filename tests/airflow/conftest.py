"""Airflow's API in a whole stack (`support.stack`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream_server.cli.demo.airflow_client import AirflowRestClient
    from stream_server.cli.demo.server import StreamServerProcess
    from stream_server.cli.demo.stack import DemoStack
    from support.airflow_callers import DeniedPermissions


@pytest.fixture(scope="session")
def airflow(stack: DemoStack) -> Iterator[AirflowRestClient]:
    """Airflow's REST API, as its admin: ``airflow.trigger("chat_answer", {"teardown_seconds": 1})``."""
    with stack.rest_client() as rest:
        yield rest


@pytest.fixture(scope="session")
def token(airflow: AirflowRestClient) -> str:
    """A bearer token of Airflow's admin."""
    return airflow.token


@pytest.fixture(scope="module")
def auth_server(stack: DemoStack) -> Iterator[StreamServerProcess]:
    """A server that checks permissions at Airflow, and often."""
    server = stack.add_server(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def denied(denied_permissions: DeniedPermissions) -> Iterator[DeniedPermissions]:
    """Permissions that Airflow denies; reset after the test."""
    yield denied_permissions
    denied_permissions.deny_only()

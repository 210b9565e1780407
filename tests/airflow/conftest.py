"""A whole stack, once for all tests of this tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stream_server.demo.progress import ConsoleProgress
from stream_server.demo.stack import DemoStack
from support.authoring import DAGS
from support.postgres import DATA_DIR, FAST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream_server.demo.rest import AirflowRest


@pytest.fixture(scope="session")
def stack() -> Iterator[DemoStack]:
    """PostgreSQL, Airflow with the examples and our own DAGs, a stream server; where it cannot start, tests fail."""
    # Who may see what is the matter of one test alone, which starts a server for it.
    options = ("--auth", "none")
    with DemoStack(
        DATA_DIR, dags=[DAGS], postgres_settings=FAST, serve_options=options, progress=ConsoleProgress()
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def airflow(stack: DemoStack) -> Iterator[AirflowRest]:
    """Airflow's REST API, as its admin: ``airflow.trigger("chat_answer", {"teardown_seconds": 1})``."""
    with stack.rest() as rest:
        yield rest


@pytest.fixture(scope="session")
def token(airflow: AirflowRest) -> str:
    """A bearer token of Airflow's admin."""
    return airflow.token

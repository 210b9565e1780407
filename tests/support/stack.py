"""A whole stack, once for all tests of a session that want one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from support.airflow_callers import Denied, airflow_settings
from support.authoring_forms import DAGS
from support.postgres import DATA_DIR, FAST

BROWSER_DAGS = Path(__file__).resolve().parents[1] / "browser" / "dags"
NEWEST_DAGS = Path(__file__).resolve().parents[1] / "airflow" / "dags_3_3"
"""DAG files that older versions of Airflow cannot read."""


@pytest.fixture(scope="session")
def denials(tmp_path_factory: pytest.TempPathFactory) -> Denied:
    """What Airflow denies whom: nothing, but where a test says so."""
    return Denied(tmp_path_factory.mktemp("airflow") / "denied.json")


@pytest.fixture(scope="session")
def stack(denials: Denied) -> Iterator[DemoStack]:
    """PostgreSQL, Airflow with the examples and our own DAGs, a stream server; where it cannot start, tests fail."""
    # Who may see what is the matter of a few tests, which start servers for it.
    options = ("--auth", "none")
    with DemoStack(
        DATA_DIR,
        dags=[DAGS, BROWSER_DAGS, NEWEST_DAGS],
        postgres_settings=FAST,
        airflow_settings=airflow_settings(denials.path),
        serve_options=options,
        progress=ConsoleReporter(),
    ) as stack:
        yield stack

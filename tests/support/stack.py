"""A whole stack, once for all tests of a session that want one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_server.demo.progress import ConsoleProgress
from stream_server.demo.stack import DemoStack
from support.authoring import DAGS
from support.postgres import DATA_DIR, FAST

BROWSER_DAGS = Path(__file__).resolve().parents[1] / "browser" / "dags"


@pytest.fixture(scope="session")
def stack() -> Iterator[DemoStack]:
    """PostgreSQL, Airflow with the examples and our own DAGs, a stream server; where it cannot start, tests fail."""
    # Who may see what is the matter of a few tests, which start servers for it.
    options = ("--auth", "none")
    with DemoStack(
        DATA_DIR,
        dags=[DAGS, BROWSER_DAGS],
        postgres_settings=FAST,
        serve_options=options,
        progress=ConsoleProgress(),
    ) as stack:
        yield stack

"""Airflow's own commands on a real PostgreSQL; where an older Airflow cannot be had, tests fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from matrix.ladder import Ladder
from stream_server.demo import airflow, template
from stream_server.demo.postgres import EmbeddedPostgres
from support.postgres import DATA_DIR


@pytest.fixture(scope="session")
def whole_ladder(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    """Databases that have come up from Airflow 3.0; they go with the cluster."""
    environment = airflow.environment(
        tmp_path_factory.mktemp("airflow"),
        postgres.url(),
        port=0,
        dags=[],
        bytecode=template.bytecode_dir(DATA_DIR / "cache"),
    )
    return Ladder(postgres, environment)


@pytest.fixture
def ladder(whole_ladder: Ladder) -> Iterator[Ladder]:
    """The ladder; the copies that a test has made of its databases go with the test."""
    yield whole_ladder
    whole_ladder.drop_copies()

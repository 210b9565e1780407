"""Fixtures that any tier may use; they cost nothing where nobody asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.postgres import create_database_from_airflow_template, drop_database, running_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream_server.demo.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server of this session's own; tests may stop, kill and restart it, and leave it running."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def airflow_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a fresh, migrated Airflow database, as the role airflow that owns it."""
    name = create_database_from_airflow_template(postgres)
    yield postgres.url(name)
    drop_database(postgres, name)

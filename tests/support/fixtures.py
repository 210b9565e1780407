"""Fixtures for all tiers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.postgres import (
    create_database_from_airflow_template,
    create_database_with_journal,
    drop_database_later,
    running_postgres,
)
from support.server import RunningServer, running_server
from support.waiting import eventually_async


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this session. Tests may stop, kill and restart it, but leave it running."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def airflow_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of a fresh, migrated Airflow database, for the role `airflow` that owns it."""
    name = create_database_from_airflow_template(postgres)
    yield postgres.url(name)
    drop_database_later(postgres, name)


@pytest.fixture
async def journal(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """URL of a fresh Airflow database with the journal installed."""
    name = await create_database_with_journal(postgres)
    yield postgres.url(name)
    drop_database_later(postgres, name)


@pytest.fixture
async def airflow(journal: str) -> AsyncIterator[AirflowSql]:
    """A database session of Airflow."""
    async with AirflowSql.open(journal) as session:
        yield session


@pytest.fixture
def settings(journal: str) -> Callable[..., Settings]:
    """A function that makes settings of a server that follows the journal."""

    def make(**options: object) -> Settings:
        return Settings.load(**{"database_url": journal, "port": 0, "grace_period": 2.0, **options})

    return make


@pytest.fixture
async def server(settings: Callable[..., Settings]) -> AsyncIterator[RunningServer]:
    """A server whose tail is live."""
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


@pytest.fixture
async def run(airflow: AirflowSql) -> RunKey:
    """A run of `CHAIN` that was just triggered."""
    version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
    key = RunKey("chat", "manual__2026-11-22T10:00:00+00:00")
    await airflow.trigger(key, version, list(CHAIN))
    return key


@pytest.fixture
def no_tracebacks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that the log has no traceback at the end of the test."""
    yield
    tracebacks = [record for phase in ("setup", "call") for record in caplog.get_records(phase) if record.exc_info]
    assert not tracebacks, [record.getMessage() for record in tracebacks]

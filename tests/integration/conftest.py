"""Fixtures of servers that check permissions at a stub of Airflow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import install_journal
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.airflow_stub import AirflowStub
from support.postgres import create_database_from_airflow_template, drop_database
from support.server import RunningServer, running_server
from support.stub_callers import CallerPermissions, StubPermissions
from support.waiting import eventually_async


@pytest.fixture
def ada() -> CallerPermissions:
    """A caller that can read everything until a test takes permissions away."""
    return CallerPermissions()


@pytest.fixture
def permissions(stub: AirflowStub, ada: CallerPermissions) -> StubPermissions:
    """The permissions of callers at the stub."""
    permissions = StubPermissions(ada)
    stub.instead = permissions
    return permissions


@pytest.fixture
async def auth_server(
    settings: Callable[..., Settings],
    stub: AirflowStub,
    permissions: StubPermissions,
) -> AsyncIterator[RunningServer]:
    """A server that checks permissions at the stub, and often."""
    configured = settings(airflow_url=stub.url, auth_cache="200ms", auth_grace="1s", ping_interval="100ms")
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live, what="the tail has started")
        yield server


@pytest.fixture
async def key(airflow: AirflowSql, stub: AirflowStub) -> RunKey:
    """A run of `CHAIN` that was just triggered."""
    key = RunKey("chat", "r1")
    await airflow.trigger(key, stub.version, list(CHAIN))
    return key


@pytest.fixture(scope="module")
def scenario_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """URL of an Airflow database with the journal, for all tests of a module."""
    name = create_database_from_airflow_template(postgres)
    url = postgres.url(name)
    asyncio.run(install_journal(url, "public", lock_timeout=5, attempts=1))
    yield url
    drop_database(postgres, name)

"""A real Chromium. Where CI=true a missing one is a failure; elsewhere the tier says that it was left out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from support.browser_session import BrowserSession, open_browser
from support.system_programs import find_or_install

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium: one on PATH, else Debian's package where it may be installed."""
    return find_or_install("chromium", *NAMES)


@pytest.fixture(scope="session")
def auth_server(stack: DemoStack) -> Iterator[StreamServerProcess]:
    """A stream server of the stack that has Airflow decide who may see what, and asks it often."""
    server = stack.add_server(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rest(stack: DemoStack) -> Iterator[AirflowRestClient]:
    """Airflow's REST API, as its admin."""
    with stack.rest_client() as rest:
        yield rest


@pytest.fixture
async def browser(
    chromium: str, auth_server: StreamServerProcess, rest: AirflowRestClient
) -> AsyncIterator[BrowserSession]:
    """An admin of Airflow who has signed in."""
    async with open_browser(chromium, auth_server.url, rest.token) as visitor:
        yield visitor

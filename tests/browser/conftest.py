"""A real Chromium. Without it, tests are skipped, or fail where CI=true."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from support.browser_session import BrowserSession, open_browser
from support.chromium import running_chromium
from support.system_programs import find_or_install

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium on PATH. As root, Debian's package is installed if there is none."""
    return find_or_install("chromium", *NAMES)


@pytest.fixture(scope="session")
def chromium_address(chromium: str) -> Iterator[str]:
    """Address of a Chromium of this session, for `connect_to_chromium`."""
    with running_chromium(chromium) as address:
        yield address


@pytest.fixture(scope="session")
def auth_server(stack: DemoStack) -> Iterator[StreamServerProcess]:
    """A stream server of the stack that checks permissions at Airflow, and often."""
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
    chromium_address: str, auth_server: StreamServerProcess, rest: AirflowRestClient
) -> AsyncIterator[BrowserSession]:
    """A browser session of a signed-in admin of Airflow."""
    async with open_browser(chromium_address, auth_server.url, rest.token) as visitor:
        yield visitor

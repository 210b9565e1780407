"""Findings of `stream-server doctor` about the proxies between a client and the server."""

from __future__ import annotations

import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.doctor.report import Finding, Level
from stream_server.cli.doctor.runner import DoctorTargets, run_checks
from support.http_proxy import Habit, proxy
from support.server import RunningServer


async def run_server_check(check: str, url: str) -> Finding:
    finding = (await run_checks(DoctorTargets(url=url))).get(check)
    assert finding is not None, f"no finding of {check}"
    return finding


async def test_proxy_without_websockets(server: RunningServer) -> None:
    async with proxy(server.url, "pass on") as url:
        report = await run_checks(DoctorTargets(url=url))
    buffering, websocket = report.get("buffering"), report.get("websocket")
    assert buffering is not None
    assert websocket is not None
    assert (buffering.level, "no buffering" in buffering.found) == (Level.OK, True)
    assert (websocket.level, "Upgrade $http_upgrade" in (websocket.remedy or "")) == (Level.PROBLEM, True)


@pytest.mark.parametrize(
    ("behaviour", "level", "expected", "remedy"),
    [
        ("buffer", Level.PROBLEM, "streams are buffered", "proxy_buffering off"),
        (
            "compress and buffer",
            Level.PROBLEM,
            "buffered and compressed with gzip",
            "disable compression",
        ),
        ("compress", Level.WARNING, "streams are compressed with gzip", "no-transform"),
        ("strip headers", Level.WARNING, "removed Cache-Control: no-transform", "keep Cache-Control"),
        ("hide the probe", Level.WARNING, "status 404 and 0 of 4 pings", "forward /api/v2/stream to stream_server"),
    ],
)
async def test_proxy_that_breaks_streams(
    server: RunningServer, behaviour: Habit, level: Level, expected: str, remedy: str
) -> None:
    async with proxy(server.url, behaviour) as url:
        finding = await run_server_check("buffering", url)
    assert finding.level is level, finding
    assert expected in finding.found
    assert remedy in (finding.remedy or "")


async def test_server_is_not_ready(server: RunningServer) -> None:
    await server.hub.drain(0.1)
    finding = await run_server_check("server", server.url)
    assert (finding.level, finding.facts["problems"]) == (Level.PROBLEM, ["the server is shutting down"])


async def test_address_of_another_service(postgres: EmbeddedPostgres) -> None:
    report = await run_checks(DoctorTargets(url=f"http://127.0.0.1:{postgres.port}"))
    finding = report.get("server")
    assert finding is not None
    assert (finding.level, "no response from http://127.0.0.1" in finding.found) == (Level.PROBLEM, True)

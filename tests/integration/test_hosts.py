"""Without a credential, requests for the host names of other sites are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_stub import AirflowStub
from support.multi_process_server import MultiProcessServer
from support.raw_connection import UPGRADE, open_raw, request
from support.server import running_server, server_process
from support.streams import stream_path
from support.waiting import eventually_async

pytestmark = pytest.mark.usefixtures("no_tracebacks")

RUN = RunKey("chat", "manual__2026-11-22T10:00:00+00:00")
RESULT = f"{stream_path(RUN).removesuffix('stream')}result?timeout=0"
LIST = "/api/v2/stream/runs"
PATHS = (LIST, RESULT, "/api/v2/stream/session", "/health", "/metrics", "/openapi.json", "/", "/nowhere")
LOOPBACK = ("localhost", "LOCALHOST:8090", "app.localhost", "localhost.", "127.0.0.1:8090", "127.8.9.1", "[::1]:8090")
ADDRESSES = ("10.0.0.7:8090", "[2001:db8::7]")
FOREIGN = (
    *("evil.example:8090", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "here"),
    *("", "[", "evil@localhost", "localhost:x", "localhost/", "a b", "\xff", "127.1", "0x7f.1", "2130706433"),
)


async def _status(url: str, path: str, *headers: str, host: str | None, method: str = "GET") -> int:
    data = request(path, "Connection: close", *headers, method=method)
    line = b"" if host is None else b"Host: %b\r\n" % host.encode("latin-1")
    async with open_raw(url) as connection:
        await connection.send(data.replace(b"Host: localhost\r\n", line))
        head = await connection.reader.readuntil(b"\r\n")
    return int(head.split()[1])


async def test_only_loopback_names_and_addresses_are_answered(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings()) as server:
        await eventually_async(lambda: server.hub.is_live)
        for host in FOREIGN:
            origin = f"Origin: http://{host}"
            found = [await _status(server.url, path, origin, host=host) for path in PATHS]
            found += [
                await _status(server.url, path, origin, *UPGRADE[1:], "Connection: Upgrade", host=host)
                for path in ("/api/v2/stream", stream_path(run), "/api/v2/stream/probe")
            ]
            found.append(await _status(server.url, LIST, host=host, method="OPTIONS"))
            assert set(found) == {403}, (host, found)
        for known in (*LOOPBACK, *ADDRESSES, None):
            assert await _status(server.url, LIST, host=known) == 200, known
            assert await _status(server.url, "/api/v2/stream", *UPGRADE, host=known) == 101, known
        # `Forwarded` and `X-Forwarded-Host` are never read.
        passed_on = "X-Forwarded-Host: localhost", "Forwarded: host=localhost"
        assert await _status(server.url, LIST, *passed_on, host="evil.example") == 403


async def test_a_second_host_header_hides_none(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings()) as server:
        for pair in (("localhost", "evil.example"), ("evil.example", "localhost")):
            assert await _status(server.url, LIST, f"Host: {pair[1]}", host=pair[0]) in {400, 403, 422}


async def test_further_names_can_be_allowed(settings: Callable[..., Settings], run: RunKey) -> None:
    async with running_server(settings(allowed_hosts="Stream.example.com, other")) as server:
        await eventually_async(lambda: server.hub.is_live)
        names = ("stream.example.com:443", "STREAM.example.com.", "other", "evil.example", "a.stream.example.com")
        assert [await _status(server.url, LIST, host=name) for name in names] == [200, 200, 200, 403, 403]
    async with running_server(settings(allowed_hosts="*")) as server:
        await eventually_async(lambda: server.hub.is_live)
        assert await _status(server.url, LIST, host="evil.example") == 200


async def test_any_host_is_answered_where_a_credential_is_needed(
    settings: Callable[..., Settings], stub: AirflowStub, unused_tcp_port: int
) -> None:
    configured = settings(airflow_url=stub.url, admin_port=unused_tcp_port)
    async with running_server(configured) as server:
        await eventually_async(lambda: server.hub.is_live)
        assert await _status(server.url, LIST, host="stream.example.com") == 200
        admin = f"http://127.0.0.1:{unused_tcp_port}"
        hosts = ("stream.example.com", "localhost:9090", "10.0.0.7")
        assert [await _status(admin, "/metrics", host=host) for host in hosts] == [403, 200, 200]


async def test_workers_check_the_host_too(journal: str, unused_tcp_port_factory: Callable[[], int]) -> None:
    port, admin_port = unused_tcp_port_factory(), unused_tcp_port_factory()
    url, admin = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    options = ("--workers", "2", "--port", str(port), "--admin-port", str(admin_port))
    async with server_process(*options, STREAM_SERVER_DATABASE_URL=journal) as process:
        await MultiProcessServer(process, url, admin).wait_until_ready()
        for _ in range(4):
            assert await _status(url, LIST, host="evil.example") == 403
            assert await _status(url, "/api/v2/stream", *UPGRADE, host="evil.example") == 403
            assert await _status(url, LIST, host="localhost") == 200
        assert await _status(admin, "/metrics", host="evil.example") == 403

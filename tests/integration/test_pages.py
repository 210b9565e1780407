"""The web pages as the server serves them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from stream_server.http import static_pages
from stream_server.settings import Settings
from support.server import RunningServer, running_server, server_process

SCRIPT = "console.log('hello');"


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pages as the build writes them."""
    folder = tmp_path / "web"
    (folder / "assets").mkdir(parents=True)
    (folder / "built-from").write_text("digest")
    (folder / "index.html").write_text("<!doctype html><title>Runs</title>")
    (folder / "assets" / "index-4c1f0be2.js").write_text(SCRIPT)
    (folder / "assets" / "index-4c1f0be2.js.gz").write_bytes(gzip.compress(SCRIPT.encode()))
    monkeypatch.setattr(static_pages, "BUILD_DIRECTORY", folder)
    return folder


@pytest.mark.parametrize("path", ["/", "/chat", "/runs/chat_answer/manual__2026-11-22T14:21:10+00:00"])
async def test_every_page_has_a_strict_policy(built: Path, settings: Callable[..., Settings], path: str) -> None:
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        page = await client.get(path)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text == (built / "index.html").read_text()
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-cache"


@pytest.mark.usefixtures("built")
async def test_a_file_has_an_encoding_that_the_browser_accepts(settings: Callable[..., Settings]) -> None:
    path = "/assets/index-4c1f0be2.js"
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        for accepted, coding in (("gzip, br", "gzip"), ("gzip;q=0", None), ("br", None), ("", None), ("*", "gzip")):
            answer = await client.get(path, headers={"Accept-Encoding": accepted})
            assert (answer.text, answer.headers.get("content-encoding")) == (SCRIPT, coding), accepted
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert "Accept-Encoding" in answer.headers["vary"]
            etag = answer.headers["etag"]
            headers = {"Accept-Encoding": accepted, "If-None-Match": etag}
            assert (await client.get(path, headers=headers)).status_code == 304


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "path", ["/assets/index-4c1f0be2.js.gz", "/assets/../built-from", "/built-from", "/index.html", "/assets/"]
)
async def test_no_other_file_is_served(settings: Callable[..., Settings], path: str) -> None:
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get(path)).status_code == 404


async def test_missing_pages_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., Settings]
) -> None:
    monkeypatch.setattr(static_pages, "BUILD_DIRECTORY", tmp_path / "missing")
    async with running_server(settings()) as server, httpx.AsyncClient(base_url=server.url) as client:
        missing = await client.get("/chat")
        assert (await client.get("/health")).status_code == 200
    assert (missing.status_code, missing.json()["title"]) == (404, "Pages missing")


@pytest.mark.usefixtures("built")
async def test_pages_can_be_disabled(settings: Callable[..., Settings]) -> None:
    async with running_server(settings(web=False)) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/")).json()["title"] == "Not Found"


async def test_the_command_can_disable_pages(journal: str, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    options = ("--no-web", "--database-url", journal, "--port", str(unused_tcp_port))
    async with server_process(*options) as process, httpx.AsyncClient(base_url=url) as client:
        assert process.stderr is not None
        while b"Listening on" not in await asyncio.wait_for(process.stderr.readline(), 30):
            assert process.returncode is None
        statuses = [(await client.get(path)).status_code for path in ("/", "/chat", "/health")]
    assert statuses == [404, 404, 200]


async def test_the_installed_pages_are_complete(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        page = await client.get("/")
        assert page.status_code == 200
        names = [part.split('"')[0] for part in page.text.split('="/')[1:]]
        assert {name.rpartition(".")[2] for name in names} >= {"css", "js"}
        for name in names:
            answer = await client.get(f"/{name}", headers={"Accept-Encoding": "br"})
            assert answer.status_code == 200, name

"""The client needs only the extra `client`, and one of two HTTP libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stream_server.client

PROGRAM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if not BLOCKED.isdisjoint({name, name.partition(".")[0]}):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
from stream_server.client import *
Client("http://h").close()
sys.stdout.write(" ".join(sys.modules))
"""

OTHERS = {"starlette", "uvicorn", "asyncpg", "pydantic", "pydantic_settings", "typer", "rich", "prometheus_client"}
PACKAGES = {f"stream_server.{name}" for name in ("auth", "domain", "http", "hub", "journal", "server", "settings")}


def test_the_client_needs_neither_the_server_nor_httpx_beside_httpx2() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join({*OTHERS, *PACKAGES, "httpx"})],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "httpx2" in done.stdout.split()


def test_without_an_http_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("httpx", "httpx2"):
        # An import of it fails (`importlib._bootstrap._find_and_load`).
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'airflow-stream-server\[client\]'"):
        stream_server.client.Client("http://h")


def test_all_names_are_exported() -> None:
    public = {
        name
        for name, value in vars(stream_server.client).items()
        if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert public == set(stream_server.client.__all__)

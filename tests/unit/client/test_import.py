"""The client needs only the extra `client`."""

from __future__ import annotations

import subprocess
import sys

import stream_server.client

PROGRAM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if name in BLOCKED or top in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
from stream_server.client import *
Client("http://h").close()
print(",".join(sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))))
"""


def test_the_client_imports_only_what_its_extra_installs() -> None:
    others = {"starlette", "uvicorn", "asyncpg", "pydantic", "pydantic_settings", "typer", "rich", "prometheus_client"}
    packages = {f"stream_server.{name}" for name in ("auth", "domain", "http", "hub", "journal", "server", "settings")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(others | packages)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "httpx" in done.stdout.split(",")


def test_the_client_works_with_httpx2_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "httpx"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    imported = done.stdout.strip().split(",")
    assert "httpx2" in imported
    assert "httpx" not in imported


def test_without_an_http_library_the_error_names_the_extra() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "httpx,httpx2"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "pip install 'airflow-stream-server[client]'" in done.stderr


def test_all_names_are_exported() -> None:
    public = {
        name
        for name, value in vars(stream_server.client).items()
        if not name.startswith("_") and not isinstance(value, type(sys))
    }
    assert public == set(stream_server.client.__all__)

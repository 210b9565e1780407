"""DAG files that Airflow cannot import. The test of the real demo has one, too, but no broken example."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stream_server.cli.demo.airflow import Airflow
from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.progress import SilentReporter

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES, ADDED = Path("/examples"), Path("/added")
TRACE = "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'x'\n"


class _AirflowWithErrors(BaseHTTPRequestHandler):
    """Airflow's API with one DAG, `read`, and import errors."""

    broken: list[tuple[str, str]]
    """Bundle and file."""

    def do_POST(self) -> None:
        self._respond({"access_token": "token"})

    def do_GET(self) -> None:
        if self.path.startswith("/api/v2/importErrors"):
            errors = [{"bundle_name": bundle, "filename": name, "stack_trace": TRACE} for bundle, name in self.broken]
            self._respond({"import_errors": errors})
        else:
            self._respond({}, 200 if self.path == "/api/v2/dags/read" else 404)

    def log_message(self, *_arguments: object) -> None: ...

    def _respond(self, body: object, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


class _Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def print_line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def airflow(tmp_path: Path) -> Iterator[Airflow]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _AirflowWithErrors) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        airflow = Airflow(tmp_path, tmp_path, "postgresql://", dags=[EXAMPLES, ADDED], bytecode=tmp_path)
        airflow.url = f"http://127.0.0.1:{server.server_port}"
        yield airflow
        server.shutdown()


def test_an_import_error_in_an_added_folder_is_reported_once(airflow: Airflow) -> None:
    _AirflowWithErrors.broken = [("dags-2", "sub/bad.py")]
    reporter = _Lines()
    airflow.wait_for_dags(["read"], reporter, optional_folders=[ADDED])
    airflow.report_import_errors(reporter)
    assert reporter.lines == [
        "Warning: /added/sub/bad.py has an import error: ModuleNotFoundError: No module named 'x'"
    ]


@pytest.mark.parametrize("awaited", ["read", "missing"])
def test_an_import_error_of_an_example_stops_the_start(airflow: Airflow, awaited: str) -> None:
    _AirflowWithErrors.broken = [("dags-2", "bad.py"), ("dags-1", "chat.py")]
    reporter = _Lines()
    with pytest.raises(
        DemoError, match=r"^/examples/chat\.py has an import error:\nTraceback(.|\n)*No module named 'x'\n$"
    ):
        airflow.wait_for_dags([awaited], reporter, optional_folders=[ADDED])
    assert len(reporter.lines) == 1


def test_by_default_each_import_error_stops_the_start(airflow: Airflow) -> None:
    _AirflowWithErrors.broken = [("dags-2", "bad.py")]
    with pytest.raises(DemoError, match=r"/added/bad\.py"):
        airflow.wait_for_dags(["missing"], SilentReporter())

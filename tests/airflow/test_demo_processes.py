"""Starts and ends of `stream-server demo`. These tests need no stack that runs: a tier of their own runs them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from stream_server.cli.demo.errors import DemoError
from support.airflow_callers import RARE_GARBAGE
from support.postgres import DATA_DIR
from support.processes import is_alive
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stream_server.cli.demo.postgres import EmbeddedPostgres

ANSWER = "Air scatters blue light more than red."
DEMO_SECONDS = 180.0
END_SECONDS = 60.0


class Demo:
    """``stream-server demo`` as a user starts it, and all its descendant processes."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._seen: set[psutil.Process] = set()
        self._output, self._messages = directory / "stdout", directory / "stderr"
        command = [sys.executable, "-m", "stream_server", "demo", "--data-dir", str(DATA_DIR), *options]
        with self._output.open("w") as output, self._messages.open("w") as messages:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(RARE_GARBAGE)},
                stdout=output,
                stderr=messages,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def messages(self) -> str:
        return self._messages.read_text()

    def wait_for_message(self, text: str) -> None:
        def has_message() -> bool:
            self._record_processes()
            assert self.process.poll() is None, self.messages
            return text in self.messages

        eventually(has_message, DEMO_SECONDS, what=f"the message {text!r}")

    def end(self, number: signal.Signals | None = None) -> int:
        self._record_processes()
        if number is not None:
            self.process.send_signal(number)
        eventually(self._has_ended, DEMO_SECONDS, what="the demo's end")
        return self.process.returncode

    def running(self) -> list[psutil.Process]:
        """Return all descendant processes that still run, also those with another parent by now."""
        return [process for process in self._seen if is_alive(process)]

    def _has_ended(self) -> bool:
        self._record_processes()
        return self.process.poll() is not None

    def _record_processes(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def run_directory(self) -> Path:
        found = re.search(r"^Logs +(.+)/logs$", self.messages, re.MULTILINE)
        assert found, self.messages
        return Path(found[1])


@contextmanager
def demo(directory: Path, *options: str) -> Iterator[Demo]:
    started = Demo(directory, *options)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGTERM)


def test_once_prints_the_result_and_cleans_up(tmp_path: Path) -> None:
    broken = tmp_path / "dags" / "broken.py"
    broken.parent.mkdir()
    broken.write_text("from airflow.sdk import dag\nimport no_such_module\n")
    with demo(tmp_path, "--once", "--dags", str(broken.parent)) as once:
        assert once.end() == 0, once.messages
        assert once.messages.count(f"{broken} has an import error") == 1
        assert (
            f"Warning: {broken} has an import error: ModuleNotFoundError: No module named 'no_such_module'"
            in once.messages
        )
        assert ANSWER in once.output
        assert once.running() == []
        assert not once.run_directory().exists()


def test_ctrl_c_ends_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as waiting:
        waiting.wait_for_message("Press Ctrl-C to stop")
        assert ANSWER in waiting.output
        assert len(waiting.running()) > 10
        assert waiting.end(signal.SIGINT) == 0, waiting.messages
        assert waiting.running() == []
        assert not waiting.run_directory().exists()


# Alternating signals: both have the same handler, and each start of Airflow takes half a minute of CPU time.
@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("Starting PostgreSQL", signal.SIGTERM),
        ("Starting stream_server", signal.SIGINT),
        ("Starting Airflow", signal.SIGTERM),
    ],
)
def test_signal_during_the_start_cleans_up(tmp_path: Path, phase: str, number: signal.Signals) -> None:
    with demo(tmp_path) as starting:
        starting.wait_for_message(phase)
        assert starting.end(number) == 130, starting.messages
        assert starting.running() == []


def test_killed_demo_ends_its_descendants(tmp_path: Path) -> None:
    with demo(tmp_path) as killed:
        killed.wait_for_message("Starting Airflow")
        assert killed.end(signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: not killed.running(), END_SECONDS, what="the end of all processes")


def test_port_in_use_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with demo(tmp_path, "--once", "--airflow-port", str(port)) as refused:
            assert refused.end() == 2
            assert f"port {port} for Airflow is not available" in refused.messages


def test_an_airflow_that_dies_is_reported_with_its_log(tmp_path: Path) -> None:
    with demo(tmp_path) as broken:
        broken.wait_for_message("... Starting Airflow")
        scheduler = eventually(lambda: [process for process in broken.running() if "scheduler" in process.cmdline()])[0]
        scheduler.kill()
        assert broken.end() == 2
        assert "Airflow scheduler ended unexpectedly (killed by SIGKILL)" in broken.messages
        logs = re.search(r"^The logs are in (.+)$", broken.messages, re.MULTILINE)
        assert logs, broken.messages
        assert Path(logs[1], "airflow-scheduler.log").exists()


def test_killed_postgres_restarts_with_a_busy_backend(postgres: EmbeddedPostgres) -> None:
    command = [
        postgres.installation.program_path("psql"),
        postgres.url("postgres", "postgres"),
        "-c",
        "SELECT pg_sleep(600)",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as busy:
        eventually(lambda: postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE query ~ '[(]600'") == "1")
        address, pid = postgres.url(), postgres.pid
        postgres.kill()
        assert busy.wait(10) != 0
    assert not postgres.is_running
    postgres.start()
    assert postgres.execute("SELECT 1") == "1"
    assert (postgres.url(), postgres.pid != pid) == (address, True)


def test_a_lock_file_with_a_reused_pid_does_not_block_the_start(postgres: EmbeddedPostgres) -> None:
    postgres.stop("immediate")
    lock = [str(os.getpid()), str(postgres.data_dir), "1", str(postgres.port), "", "127.0.0.1"]
    (postgres.data_dir / "postmaster.pid").write_text("\n".join(lock))
    postgres.start()
    assert postgres.execute("SELECT 1") == "1"


def test_an_error_of_postgres_is_reported(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(DemoError, match='relation "nowhere" does not exist'):
        postgres.execute("SELECT * FROM nowhere")

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from stream_server.cli.demo import template_cluster
from stream_server.cli.demo.command import NOT_STARTED, run_demo
from stream_server.cli.demo.errors import DemoError, read_last_lines
from stream_server.cli.demo.ports import LOOPBACK
from stream_server.cli.demo.postgres_install import Account, PostgresInstallation
from stream_server.cli.demo.progress import SilentReporter
from stream_server.cli.demo.run_directory import KEEP_LOGS_SECONDS, RunDirectory


class RecordingReporter(SilentReporter):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lines: list[str] = []
        self.waiting = threading.Event()

    def start_step(self, what: str) -> None:
        self.steps.append(what)

    def update_step(self, detail: str = "") -> None:
        self.waiting.set()

    def print_line(self, text: str) -> None:
        self.lines.append(text)


def leave_run_directory_by_sigkill(data_dir: Path) -> Path:
    """Return the run directory that a killed demo has left."""
    script = f"""
import os, signal
from pathlib import Path
from stream_server.cli.demo.run_directory import RunDirectory
print(RunDirectory(Path({str(data_dir)!r})).path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return Path(killed.stdout.strip())


def test_run_directories_are_independent(tmp_path: Path) -> None:
    one, two = RunDirectory(tmp_path), RunDirectory(tmp_path)
    assert one.path != two.path
    assert one.logs.is_dir()
    one.remove()
    assert not one.path.exists()
    assert two.logs.is_dir()
    two.remove()


def test_next_demo_removes_the_directory_of_a_killed_one(tmp_path: Path) -> None:
    left = leave_run_directory_by_sigkill(tmp_path)
    assert left.exists()
    RunDirectory(tmp_path).remove()
    assert not left.exists()


def test_kept_logs_stay_for_a_day(tmp_path: Path) -> None:
    failed = RunDirectory(tmp_path)
    log = failed.logs / "airflow-scheduler.log"
    log.write_text("why")
    failed.keep_logs()
    RunDirectory(tmp_path).remove()
    assert log.exists()
    mark = failed.path / "kept"
    yesterday = mark.stat().st_mtime - KEEP_LOGS_SECONDS - 1
    os.utime(mark, (yesterday, yesterday))
    RunDirectory(tmp_path).remove()
    assert not log.exists()


def test_data_directory_is_the_requested_one(tmp_path: Path) -> None:
    installation = PostgresInstallation(tmp_path, "18", None)
    assert installation.data_directory_for(tmp_path / "cluster") == tmp_path / "cluster"


def test_unreachable_data_directory_is_replaced_consistently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(PostgresInstallation, "_can_run_in", lambda *_: False)
    installation = PostgresInstallation(tmp_path, "18", Account(65_534, 65_534))
    directory = installation.data_directory_for(tmp_path / "root" / "cluster")
    assert directory == installation.data_directory_for(tmp_path / "root" / "cluster")
    assert directory != installation.data_directory_for(tmp_path / "root" / "other")
    assert directory.parent.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize("trap", ["link", "writable"])
def test_shared_directory_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / f"stream-server-{os.geteuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir()
        planted.symlink_to(tmp_path / "elsewhere")
    else:
        planted.mkdir()
        planted.chmod(0o777)
    monkeypatch.setattr(PostgresInstallation, "_can_run_in", lambda *_: False)
    with pytest.raises(DemoError, match="is not a directory that only this user can write to"):
        PostgresInstallation(tmp_path, "18", Account(65_534, 65_534)).data_directory_for(tmp_path / "cluster")


def test_template_name_has_both_versions() -> None:
    assert template_cluster.template_name().startswith("airflow-3.")
    assert "-postgres-18." in template_cluster.template_name()


def test_concurrent_demos_create_one_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    second = RecordingReporter()

    def make(directory: Path, _progress: object) -> None:
        waiter = threading.Thread(target=template_cluster.ensure_template, args=(tmp_path, second))
        waiter.start()
        waiters.append(waiter)
        assert second.waiting.wait(10)
        directory.mkdir()
        made.append(directory)

    waiters: list[threading.Thread] = []
    monkeypatch.setattr(template_cluster, "_make_template", make)
    directory = template_cluster.ensure_template(tmp_path, SilentReporter())
    waiters[0].join(10)
    assert made == [directory]
    assert second.steps == ["Another process is preparing the Airflow database"]


def test_read_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert read_last_lines(log, 2) == "  line 98\n  line 99"
    assert read_last_lines(tmp_path / "missing") == "  (unreadable: No such file or directory)"


def test_port_in_use_is_reported_before_the_start(tmp_path: Path) -> None:
    reporter = RecordingReporter()
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        code = run_demo(
            once=True, port=port, airflow_port=None, postgres_port=None, data_dir=tmp_path, progress=reporter
        )
    assert code == NOT_STARTED
    assert reporter.steps == []
    assert f"port {port} for stream_server is not available (Address already in use)" in reporter.lines[0]
    assert [path for path in (tmp_path / "runs").iterdir() if path.is_dir()] == []

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from stream_server.cli.demo import reaper
from stream_server.cli.demo.errors import StartError
from stream_server.cli.demo.processes import ChildProcess, describe_exit, run_in_foreground, wait_for_call, wait_until
from stream_server.cli.demo.progress import SilentReporter
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Starts a process in its own process group that ignores SIGTERM and then prints a line, and waits.
IGNORES_SIGTERM = """
import signal, subprocess, sys
child = '''
import os, signal, time
os.setpgid(0, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ignoring", flush=True)
time.sleep(600)
'''
subprocess.Popen([sys.executable, "-c", child])
signal.pause()
"""


def python(code: str, log: Path) -> ChildProcess:
    return ChildProcess("a program", [sys.executable, "-c", code], log=log)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "program.log"


@pytest.fixture
def sleeper(log: Path) -> Iterator[ChildProcess]:
    child = python("import signal; print('ready', flush=True); signal.pause()", log)
    child.start()
    eventually(lambda: "ready" in log.read_text())
    yield child
    child.stop()


def test_child_leads_a_session(sleeper: ChildProcess) -> None:
    assert psutil.Process(sleeper.pid).ppid() == os.getpid()
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_stopped_child_can_start_again(sleeper: ChildProcess) -> None:
    first = sleeper.pid
    sleeper.stop()
    assert not sleeper.is_running
    assert sleeper.exit_code == -signal.SIGTERM
    assert not psutil.pid_exists(first)
    sleeper.start()
    assert sleeper.is_running


def test_stop_without_a_running_process_does_nothing(log: Path) -> None:
    child = python("", log)
    child.stop()
    child.start()
    eventually(lambda: not child.is_running)
    child.stop()
    child.stop()


def test_stop_kills_descendants_that_ignore_the_signal(log: Path) -> None:
    child = python(IGNORES_SIGTERM, log)
    child.start()
    eventually(lambda: "ignoring" in log.read_text())
    family = reaper.family_pids(child.pid)
    assert len(family) == 2
    child.stop(within=0.2)
    assert not family & {process.pid for process in reaper.list_processes()}


def test_reaper_ends_the_children_of_a_killed_process(log: Path, tmp_path: Path) -> None:
    script = f"""
import signal
from pathlib import Path
from stream_server.cli.demo.processes import ChildProcess
child = ChildProcess("a program", {["sleep", "600"]!r}, log=Path({str(log)!r}))
child.start()
Path({str(tmp_path / "pid")!r}).write_text(f"{{child.pid}}.")
signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    written = tmp_path / "pid"
    eventually(lambda: written.exists() and written.read_text().endswith("."))
    orphan = int(written.read_text()[:-1])
    assert psutil.pid_exists(orphan)
    parent.kill()
    parent.wait()
    eventually(lambda: orphan not in {process.pid for process in reaper.list_processes()}, what="the orphan's end")


def test_start_error_has_the_last_lines_of_the_log(log: Path) -> None:
    child = python("print('out of paper'); raise SystemExit(3)", log)
    child.start()
    with pytest.raises(StartError, match=r"a program ended unexpectedly \(exit code 3\)(?s:.*)out of paper"):
        wait_until(lambda: None, within=10, waiting_for=child, progress=SilentReporter())


def test_start_error_names_a_missing_program(log: Path) -> None:
    child = ChildProcess("a program", ["/nowhere/postgres"], log=log)
    child.start()
    with pytest.raises(StartError, match="cannot run /nowhere/postgres: No such file"):
        wait_until(lambda: None, within=10, waiting_for=child, progress=SilentReporter())


def test_wait_until_has_a_timeout(sleeper: ChildProcess) -> None:
    with pytest.raises(StartError, match="was not ready within 0 s"):
        wait_until(lambda: None, within=0, waiting_for=sleeper, progress=SilentReporter())


def test_wait_until_returns_the_result(sleeper: ChildProcess) -> None:
    assert wait_until(lambda: 42, within=1, waiting_for=sleeper, progress=SilentReporter()) == 42


def test_wait_for_call_raises_the_exception_of_the_call(sleeper: ChildProcess) -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        wait_for_call(refuse, within=10, waiting_for=sleeper, progress=SilentReporter())


def test_run_in_foreground_returns_the_exit_code() -> None:
    code = run_in_foreground([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ))
    assert code == 3


def test_list_processes_without_proc(sleeper: ChildProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_proc = {process for process in reaper.list_processes() if process.pid == sleeper.pid}
    monkeypatch.setattr(reaper, "PROC", tmp_path)
    assert {process for process in reaper.list_processes() if process.pid == sleeper.pid} == by_proc


@pytest.mark.parametrize(
    ("code", "words"), [(None, "not started"), (0, "exit code 0"), (-9, "killed by SIGKILL"), (2, "exit code 2")]
)
def test_describe_exit(code: int | None, words: str) -> None:
    assert describe_exit(code) == words

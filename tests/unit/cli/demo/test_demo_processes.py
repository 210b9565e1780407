from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from stream_server.cli.demo import reaper as leash
from stream_server.cli.demo.errors import StartError
from stream_server.cli.demo.processes import ChildProcess, describe_exit, run_in_foreground, wait_for_call, wait_until
from stream_server.cli.demo.progress import SilentReporter
from support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Starts a process that is deaf to SIGTERM, in a process group of its own, says so, and waits.
STUBBORN = """
import signal, subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", "import os; os.setpgid(0, 0);" + deaf])
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


def test_a_child_is_ours_and_leads_a_session(sleeper: ChildProcess) -> None:
    assert psutil.Process(sleeper.pid).ppid() == os.getpid()
    assert os.getsid(sleeper.pid) == sleeper.pid


def test_a_stopped_child_is_gone_and_may_start_again(sleeper: ChildProcess) -> None:
    first = sleeper.pid
    sleeper.stop()
    assert not sleeper.is_running
    assert sleeper.exit_code == -signal.SIGTERM
    assert not psutil.pid_exists(first)
    sleeper.start()
    assert sleeper.is_running


def test_stopping_what_never_started_or_has_ended_does_nothing(log: Path) -> None:
    child = python("", log)
    child.stop()
    child.start()
    eventually(lambda: not child.is_running)
    child.stop()
    child.stop()


def test_what_does_not_end_politely_is_killed_with_all_it_started(log: Path) -> None:
    child = python(STUBBORN, log)
    child.start()
    eventually(lambda: "deaf" in log.read_text())
    family = leash.family_pids(child.pid)
    assert len(family) == 2
    child.stop(within=0.2)
    assert not family & {process.pid for process in leash.list_processes()}


def test_what_our_death_leaves_behind_ends_too(log: Path, tmp_path: Path) -> None:
    """Kill a process that has a child, in the way that lets it clean up nothing."""
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
    eventually(lambda: orphan not in {process.pid for process in leash.list_processes()}, what="the orphan's end")


def test_a_child_that_dies_is_told_with_its_last_words(log: Path) -> None:
    child = python("print('out of paper'); raise SystemExit(3)", log)
    child.start()
    with pytest.raises(StartError, match=r"a program ended unexpectedly \(exit code 3\)(?s:.*)out of paper"):
        wait_until(lambda: None, within=10, waiting_for=child, progress=SilentReporter())


def test_a_program_that_is_missing_is_told_by_name(log: Path) -> None:
    child = ChildProcess("a program", ["/nowhere/postgres"], log=log)
    child.start()
    with pytest.raises(StartError, match="cannot run /nowhere/postgres: No such file"):
        wait_until(lambda: None, within=10, waiting_for=child, progress=SilentReporter())


def test_waiting_ends_with_the_deadline(sleeper: ChildProcess) -> None:
    with pytest.raises(StartError, match="was not ready within 0 s"):
        wait_until(lambda: None, within=0, waiting_for=sleeper, progress=SilentReporter())


def test_waiting_returns_the_answer(sleeper: ChildProcess) -> None:
    assert wait_until(lambda: 42, within=1, waiting_for=sleeper, progress=SilentReporter()) == 42


def test_a_failed_call_is_raised_where_it_is_waited_for(sleeper: ChildProcess) -> None:
    def refuse() -> None:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        wait_for_call(refuse, within=10, waiting_for=sleeper, progress=SilentReporter())


def test_a_program_in_the_foreground_gives_its_exit_code() -> None:
    code = run_in_foreground([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ))
    assert code == 3


def test_without_proc_the_processes_are_found_through_ps(
    sleeper: ChildProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_proc = {process for process in leash.list_processes() if process.pid == sleeper.pid}
    monkeypatch.setattr(leash, "PROC", tmp_path)
    assert {process for process in leash.list_processes() if process.pid == sleeper.pid} == by_proc


@pytest.mark.parametrize(
    ("code", "words"), [(None, "not started"), (0, "exit code 0"), (-9, "killed by SIGKILL"), (2, "exit code 2")]
)
def test_exit_codes_are_written_for_people(code: int | None, words: str) -> None:
    assert describe_exit(code) == words

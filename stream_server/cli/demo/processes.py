"""Child processes that end with this process, and functions that wait for them."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from stream_server.cli.demo import reaper
from stream_server.cli.demo.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from stream_server.cli.demo.postgres_install import Account
    from stream_server.cli.demo.progress import ProgressReporter

POLL_SECONDS = 0.05
KILL_TIMEOUT_SECONDS = 5.0

Ready = TypeVar("Ready")

REAPER_COMMAND = [sys.executable, "-I", "-S", reaper.__file__]


class _Reaper:
    """Connection to `reaper.py watch`, which starts with the first child and ends after this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def registration_fd(self) -> int:
        """Return the file descriptor for registrations. Start the reaper if it is not running."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [*REAPER_COMMAND, "watch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                start_new_session=True,
            )
            atexit.register(self.close)
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def unregister(self, pid: int) -> None:
        """Remove an ended process: another one may get its process ID."""
        os.write(self.registration_fd(), f"- {pid}\n".encode())

    def close(self) -> None:
        """Make the reaper end the registered processes, and wait for it."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


_reaper = _Reaper()


class ChildProcess:
    """A process in its own session, with a log file. It and its descendants end with this process, even after SIGKILL.

    Args:
        name: Name for the user: "Airflow scheduler".
        command: Program and arguments.
        log: File to which standard output and standard error are appended.
        environment: The complete environment; None for that of this process.
        account: The account to run as; None for that of this process.
        end_signal: Signal for a prompt end.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        account: Account | None = None,
        end_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._environment = environment
        self._account = account
        self.end_signal = end_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._is_unregistered = True

    @property
    def pid(self) -> int:
        """Process ID, also after the end of the process."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def needs_cleanup(self) -> bool:
        """Whether it was started and is still registered with the reaper."""
        return self._process is not None and not self._is_unregistered

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Exit code as in `subprocess`; None before and while the process runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process. It may start again after its end."""
        assert not self.is_running, f"{self.name} is running"
        register = _reaper.registration_fd()
        self._is_unregistered = False
        launcher = _launcher_command(register, self.end_signal, self._account)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                launcher + self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self._environment is None else dict(self._environment),
                cwd="/",
                pass_fds=[register],
                start_new_session=True,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its descendants."""
        if self.is_running:
            os.kill(self.pid, number)

    def raise_if_ended(self) -> None:
        """Raise StartError if the process has ended."""
        if not self.is_running:
            code = self.exit_code
            raise StartError(self.name, f"ended unexpectedly ({describe_exit(code)})", self.log)

    def unregister_if_ended(self) -> None:
        """Unregister the process if it has ended."""
        if not self.is_running:
            _reaper.unregister(self.pid)
            self._is_unregistered = True

    def stop(self, within: float = 10.0, end_signal: signal.Signals | None = None) -> None:
        """End the process and its descendants: with a signal, and after some seconds with SIGKILL.

        Args:
            within: Seconds before SIGKILL.
            end_signal: Overrides the signal of the process.
        """
        stop_all([self], within, end_signal)


def stop_all(children: Sequence[ChildProcess], within: float, end_signal: signal.Signals | None = None) -> None:
    """End processes and their descendants concurrently.

    Args:
        children: Processes in any state, even before their start.
        within: Seconds before SIGKILL.
        end_signal: Overrides the signals of the processes.
    """
    started = [child for child in children if child.needs_cleanup]
    remaining: set[int] = set().union(*(reaper.family_pids(child.pid) for child in started))
    for child in started:
        reaper.send_signal(reaper.session_pids(child.pid), end_signal or child.end_signal)
    if not _wait_until_gone(started, remaining, within):
        reaper.send_signal(remaining.union(*(reaper.session_pids(child.pid) for child in started)), signal.SIGKILL)
        _wait_until_gone(started, remaining, KILL_TIMEOUT_SECONDS)
    for child in started:
        child.unregister_if_ended()


def _wait_until_gone(children: Sequence[ChildProcess], known: set[int], within: float) -> bool:
    """Wait for the end of the children's sessions and of other known processes. Return false after the timeout."""
    deadline = time.monotonic() + within
    leaders = {child.pid for child in children}
    while any([child.is_running for child in children]) or any(  # noqa: C419 # a list, because `is_running` reaps each child
        process.pid in known or process.session in leaders for process in reaper.list_processes()
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def wait_until(
    condition: Callable[[], Ready | None],
    *,
    within: float,
    waiting_for: ChildProcess,
    needed: Sequence[ChildProcess] = (),
    progress: ProgressReporter,
) -> Ready:
    """Call `condition` until its result is neither None nor False, and return the result.

    Args:
        condition: Returns None or False for "not yet".
        within: Timeout in seconds.
        waiting_for: The process that makes the condition true.
        needed: Other processes that must keep running.
        progress: Updated while waiting.

    Raises:
        StartError: One of the processes has ended, or the timeout has passed.
    """
    deadline = time.monotonic() + within
    while True:
        result = condition()
        if result is not None and result is not False:
            return result
        try:
            for child in (waiting_for, *needed):
                child.raise_if_ended()
        except StartError:
            # The process may have fulfilled the condition and ended since the last call.
            result = condition()
            if result is not None and result is not False:
                return result
            raise
        if time.monotonic() > deadline:
            raise StartError(waiting_for.name, f"was not ready within {within:.0f} s", waiting_for.log)
        progress.update_step(f"waiting for {waiting_for.name}")
        time.sleep(POLL_SECONDS)


def wait_for_call(
    call: Callable[[], object],
    *,
    within: float,
    waiting_for: ChildProcess,
    needed: Sequence[ChildProcess] = (),
    progress: ProgressReporter,
) -> None:
    """Wait for a blocking call, as `wait_until` does. Raise the exception of the call."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 # raised by `future.result` below
            future.set_exception(error)

    # A daemon thread, so that a call that hangs does not delay the exit after a timeout.
    threading.Thread(target=run, daemon=True).start()
    wait_until(future.done, within=within, waiting_for=waiting_for, needed=needed, progress=progress)
    future.result()


def run_in_foreground(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program on this terminal, where it receives Ctrl-C, too. Return its exit code."""
    register = _reaper.registration_fd()
    process = subprocess.Popen(
        [*_launcher_command(register, signal.SIGTERM, None), *command], env=dict(environment), pass_fds=[register]
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILL_TIMEOUT_SECONDS)
            process.kill()
            process.wait()
        _reaper.unregister(process.pid)


def _launcher_command(register: int, end_signal: signal.Signals, account: Account | None) -> list[str]:
    """Return the prefix of a command that registers it with the reaper and runs it as the account."""
    uid, gid = (-1, -1) if account is None else (account.uid, account.gid)
    return [*REAPER_COMMAND, "exec", str(register), str(int(end_signal)), str(uid), str(gid)]


def describe_exit(code: int | None) -> str:
    """Return how a process ended as text: "exit code 1", "killed by SIGKILL"."""
    if code is None:
        return "not started"
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def module_command(name: str, *arguments: str, python: Path | None = None) -> list[str]:
    """Return the command that runs a module; `python` defaults to the interpreter of this process."""
    return [str(python or sys.executable), "-m", name, *arguments]


def log_path(directory: Path, name: str) -> Path:
    """Return the log file of a process: "Airflow scheduler" → airflow-scheduler.log."""
    return directory / f"{name.lower().replace(' ', '-')}.log"

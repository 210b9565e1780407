"""Child processes that never outlive us, and waiting for them."""

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

from stream_server.cli.demo import reaper as leash
from stream_server.cli.demo.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from stream_server.cli.demo.postgres_install import Account
    from stream_server.cli.demo.progress import ProgressReporter

POLL_SECONDS = 0.05
KILL_TIMEOUT_SECONDS = 5.0

Ready = TypeVar("Ready")

REAPER_COMMAND = [sys.executable, "-I", "-S", leash.__file__]


class _Reaper:
    """Our end of ``leash.py watch``; started with the first child, ended with us."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def registration_fd(self) -> int:
        """Return the file descriptor through which a child registers itself."""
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
        """Take an ended process off the register: its number may soon be another's."""
        os.write(self.registration_fd(), f"- {pid}\n".encode())

    def close(self) -> None:
        """Let the watcher end whatever is left, and wait for it."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


_reaper = _Reaper()


class ChildProcess:
    """A process in a session of its own, with a log file; it and all it starts end with us, however we end.

    Args:
        name: As the user should see it: "Airflow scheduler".
        command: Program and arguments.
        log: File to append standard output and standard error to.
        environment: The whole environment; ours if None.
        account: The account to run as; ours if None.
        end_signal: The signal that asks it to end at once.
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
        """The process's id, also after its end."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def needs_cleanup(self) -> bool:
        """Whether it was started, and its end not yet seen to."""
        return self._process is not None and not self._is_unregistered

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended, as subprocess tells it; None while it runs and before it is started."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process; it may be started again after its end."""
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
        """Send a signal to the process alone."""
        if self.is_running:
            os.kill(self.pid, number)

    def raise_if_ended(self) -> None:
        """Raise StartError if the process has ended."""
        if not self.is_running:
            code = self.exit_code
            raise StartError(self.name, f"ended unexpectedly ({describe_exit(code)})", self.log)

    def unregister_if_ended(self) -> None:
        """Take it off the register once it has ended."""
        if not self.is_running:
            _reaper.unregister(self.pid)
            self._is_unregistered = True

    def stop(self, within: float = 10.0, end_signal: signal.Signals | None = None) -> None:
        """End the process and all that it started: politely at first, after some seconds by force.

        Args:
            within: Seconds it has before it is killed.
            end_signal: Instead of the one it was made with.
        """
        stop_all([self], within, end_signal)


def stop_all(children: Sequence[ChildProcess], within: float, end_signal: signal.Signals | None = None) -> None:
    """End processes and all that they started, side by side.

    Args:
        children: Any processes, also ended ones and some never started.
        within: Seconds they have before they are killed.
        end_signal: For all of them, instead of each one's own.
    """
    started = [child for child in children if child.needs_cleanup]
    left: set[int] = set().union(*(leash.family_pids(child.pid) for child in started))
    for child in started:
        leash.send_signal(leash.session_pids(child.pid), end_signal or child.end_signal)
    if not _wait_until_gone(started, left, within):
        leash.send_signal(left.union(*(leash.session_pids(child.pid) for child in started)), signal.SIGKILL)
        _wait_until_gone(started, left, KILL_TIMEOUT_SECONDS)
    for child in started:
        child.unregister_if_ended()


def _wait_until_gone(children: Sequence[ChildProcess], known: set[int], within: float) -> bool:
    """Wait for the end of the children's sessions and of other known processes; False if time is up."""
    deadline = time.monotonic() + within
    leaders = {child.pid for child in children}
    while any([child.is_running for child in children]) or any(  # noqa: C419 (each child is to be reaped)
        process.pid in known or process.session in leaders for process in leash.list_processes()
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
    """Ask again and again until the answer is something, watching the processes it depends on.

    Args:
        condition: Returns None or False for "not yet".
        within: Seconds after which to give up.
        waiting_for: The process that makes the condition true.
        needed: Other processes without which there is no use in waiting.
        progress: Is ticked all the while.

    Raises:
        StartError: One of the processes has ended, or time is up.
    """
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if answer is not None and answer is not False:
            return answer
        try:
            for child in (waiting_for, *needed):
                child.raise_if_ended()
        except StartError:
            # It may have done its work, and ended, since it was asked.
            answer = condition()
            if answer is not None and answer is not False:
                return answer
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
    """Wait for a blocking call that may take long, as wait_until does; what it raises is raised here."""
    outcome: Future[object] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            outcome.set_exception(error)

    # A daemon: who gives up waiting does not wait for it at exit either.
    threading.Thread(target=run, daemon=True).start()
    wait_until(outcome.done, within=within, waiting_for=waiting_for, needed=needed, progress=progress)
    outcome.result()


def run_in_foreground(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program on our own terminal, where Ctrl-C reaches it too, and return its exit code."""
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
    """Return what stands before a command to have it registered and run as the account."""
    uid, gid = (-1, -1) if account is None else (account.uid, account.gid)
    return [*REAPER_COMMAND, "exec", str(register), str(int(end_signal)), str(uid), str(gid)]


def describe_exit(code: int | None) -> str:
    """Say how a process ended: "exit code 1", "killed by SIGKILL"."""
    if code is None:
        return "not started"
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def module_command(name: str, *arguments: str, python: Path | None = None) -> list[str]:
    """Return the command that runs a module, with our own interpreter where no other is given."""
    return [str(python or sys.executable), "-m", name, *arguments]


def log_path(directory: Path, name: str) -> Path:
    """Return the log file of a process: "Airflow scheduler" → airflow-scheduler.log."""
    return directory / f"{name.lower().replace(' ', '-')}.log"

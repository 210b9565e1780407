"""The reaper: a process that ends the demo's child processes after the demo itself has ended, even by SIGKILL.

Runs as a script with the standard library only, in one of two ways:

`reaper.py watch`
    Reads lines `+ pid signal` and `- pid` from its standard input. At the end of the input, that is, after the end of
    the demo, it sends each registered process its signal, and kills the processes that are left after a few seconds.

`reaper.py exec FD SIGNAL UID GID PROGRAM [ARGUMENT ...]`
    Registers itself through the inherited pipe FD, changes to UID and GID (unless -1), and executes PROGRAM. The
    process is registered before the program starts, so that the reaper knows it whenever the demo is killed.

Linux's parent-death signal is no alternative: it is sent when the *thread* that started the child ends, it does not
reach grandchildren, and other systems do not have it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

GRACE_SECONDS = 8.0
POLL_SECONDS = 0.05
PROC = Path("/proc")
PS_COMMAND = ["/bin/ps", "-axo", "pid=,ppid=,stat=,comm="]


class Process(NamedTuple):
    """A running process, not a zombie."""

    pid: int
    parent: int
    session: int
    name: str


def list_processes() -> list[Process]:
    """Return all running processes of this host."""
    if (PROC / "self" / "stat").exists():
        found = (_from_proc(entry) for entry in PROC.iterdir() if entry.name.isdigit())
    else:
        listing = subprocess.run(PS_COMMAND, capture_output=True, text=True, check=True)
        found = (_from_ps(line) for line in listing.stdout.splitlines())
    return [process for process in found if process is not None]


def session_pids(session: int) -> set[int]:
    """Return the processes of a session: the descendants of its leader, orphans too, that did not call setsid."""
    return {process.pid for process in list_processes() if process.session == session}


def family_pids(leader: int) -> set[int]:
    """Return the processes of a session, its leader, and their descendants whose ancestors all still run."""
    running = list_processes()
    found = {process.pid for process in running if leader in (process.pid, process.session)}
    has_grown = True
    while has_grown:
        children = {process.pid for process in running if process.parent in found} - found
        found |= children
        has_grown = bool(children)
    return found


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process; ignore those that have ended."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _from_proc(entry: Path) -> Process | None:
    try:
        # pid (name) state parent group session ...; the name may contain spaces and parentheses (proc_pid_stat(5)).
        before, _, after = (entry / "stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    state, parent, _, session = after.split()[:4]
    return None if state == "Z" else Process(int(entry.name), int(parent), int(session), before.partition("(")[2])


def _from_ps(line: str) -> Process | None:
    pid, parent, state, name = line.split(maxsplit=3)
    try:
        return None if state[0] == "Z" else Process(int(pid), int(parent), os.getsid(int(pid)), Path(name).name)
    except OSError:
        return None


def watch_parent() -> None:
    """Read registrations from standard input; at its end, end the registered processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    registered: dict[int, int] = {}
    for line in sys.stdin:
        action, pid, *number_field = line.split()
        if action == "+":
            registered[int(pid)] = int(number_field[0])
        else:
            registered.pop(int(pid), None)
    end_processes(registered)


def end_processes(registered: dict[int, int]) -> None:
    """End processes and their descendants: with a signal, and after a grace period with SIGKILL.

    Args:
        registered: The signal of each session leader.
    """
    remaining: set[int] = set().union(*(family_pids(leader) for leader in registered))
    for leader, number in registered.items():
        send_signal({leader, *session_pids(leader)}, number)
    deadline = time.monotonic() + GRACE_SECONDS
    while remaining and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        remaining &= {process.pid for process in list_processes()}
    send_signal(remaining.union(*(session_pids(leader) for leader in registered)), signal.SIGKILL)


def register_and_exec(register: int, number: int, uid: int, gid: int, command: list[str]) -> None:
    """Register this process with the reaper, change the account unless `uid` is -1, and execute the command."""
    os.write(register, f"+ {os.getpid()} {number}\n".encode())
    os.close(register)
    if uid != -1:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


def main(arguments: list[str]) -> None:
    """Run `watch` or `exec`; see the docstring of the module."""
    if arguments[0] == "watch":
        watch_parent()
    else:
        register, number, uid, gid = (int(field) for field in arguments[1:5])
        register_and_exec(register, number, uid, gid, arguments[5:])


if __name__ == "__main__":
    main(sys.argv[1:])

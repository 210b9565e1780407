"""The leash: a process that outlives us just long enough to end what we started.

Run as a script with the standard library only, in one of two ways:

``leash.py watch``
    Reads ``+ pid signal`` and ``- pid`` lines from its standard input. When that ends, however we died, every
    process still registered gets its signal, and what has not gone a few seconds later is killed.

``leash.py exec FD SIGNAL UID GID PROGRAM [ARGUMENT ...]``
    Registers itself through the inherited pipe FD, drops to UID and GID (unless -1), and becomes PROGRAM.
    Being registered before the program exists, it cannot be forgotten, at whatever moment we are killed.

Linux's parent-death signal would be simpler, but it is sent when the *thread* that started the child ends,
never reaches grandchildren, and exists on Linux only.
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
    """A living process; zombies do not count as living."""

    pid: int
    parent: int
    session: int
    name: str


def list_processes() -> list[Process]:
    """Return all living processes of this machine."""
    if (PROC / "self" / "stat").exists():
        found = (_from_proc(entry) for entry in PROC.iterdir() if entry.name.isdigit())
    else:
        listing = subprocess.run(PS_COMMAND, capture_output=True, text=True, check=True)
        found = (_from_ps(line) for line in listing.stdout.splitlines())
    return [process for process in found if process is not None]


def session_pids(session: int) -> set[int]:
    """Return the pids of a session: whatever its leader started, orphans too, except what called setsid."""
    return {process.pid for process in list_processes() if process.session == session}


def family_pids(leader: int) -> set[int]:
    """Return the pids of a session, its leader, and all that descends from them in an unbroken line."""
    everybody = list_processes()
    found = {process.pid for process in everybody if leader in (process.pid, process.session)}
    grown = True
    while grown:
        more = {process.pid for process in everybody if process.parent in found} - found
        found |= more
        grown = bool(more)
    return found


def send_signal(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process; those that have just ended are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _from_proc(entry: Path) -> Process | None:
    try:
        # pid (name) state parent group session ...; the name may itself hold blanks and parentheses.
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
    """Follow the register on standard input; when it ends, end all that is left."""
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
    """End processes and what they started, {leader: signal}: politely, and after a grace period by force."""
    left: set[int] = set().union(*(family_pids(leader) for leader in registered))
    for leader, number in registered.items():
        send_signal({leader, *session_pids(leader)}, number)
    deadline = time.monotonic() + GRACE_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left &= {process.pid for process in list_processes()}
    send_signal(left.union(*(session_pids(leader) for leader in registered)), signal.SIGKILL)


def register_and_exec(register: int, number: int, uid: int, gid: int, command: list[str]) -> None:
    """Register this process with the watcher, change the account where one is given, become the command."""
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
    """Run as ``watch`` or ``exec``; see the module's docstring."""
    if arguments[0] == "watch":
        watch_parent()
    else:
        register, number, uid, gid = (int(field) for field in arguments[1:5])
        register_and_exec(register, number, uid, gid, arguments[5:])


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run directories: each demo has its own, and removes those that killed demos have left."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import contextmanager
from datetime import datetime
from typing import IO, TYPE_CHECKING

from stream_server.cli.demo.postgres_install import PostgresInstallation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEP_LOGS_SECONDS = 24 * 3600.0


class RunDirectory:
    """The directory of one demo or test session: `.demo/runs/20261122-140305-4711`.

    A file lock marks it as in use. The lock ends with the process, even after SIGKILL.

    Args:
        data_dir: The demo's data directory; created if missing.
    """

    def __init__(self, data_dir: Path) -> None:
        runs = data_dir.absolute() / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(runs):
            _remove_abandoned(runs)
            self.path = _create_directory(runs)
            self._lock = _try_lock(self.path)
        assert self._lock is not None, "no other process knows the new directory"
        self.logs = self.path / "logs"
        self.logs.mkdir()
        self.airflow_home = self.path / "airflow"
        self.postgres = self.path / "postgres"

    def remove(self) -> None:
        """Remove the directory and its cluster, which may be in another place."""
        _remove_run(self.path)
        self._release()

    def keep_logs(self) -> None:
        """Remove the cluster, and keep the logs for a day."""
        _remove_cluster(self.path)
        (self.path / "kept").touch()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _create_directory(runs: Path) -> Path:
    name = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    number = os.getpid()
    while (path := runs / f"{name}-{number}").exists():
        number += 1
    path.mkdir()
    return path


def _remove_abandoned(runs: Path) -> None:
    """Remove the directories without a lock, except those with logs kept less than a day ago."""
    for path in runs.iterdir():
        if not path.is_dir():
            continue
        kept = path / "kept"
        if kept.exists() and time.time() - kept.stat().st_mtime < KEEP_LOGS_SECONDS:
            continue
        lock = _try_lock(path)
        if lock is not None:
            lock.close()
            _remove_run(path)


def _remove_run(path: Path) -> None:
    _remove_cluster(path)
    shutil.rmtree(path, ignore_errors=True)


def _remove_cluster(path: Path) -> None:
    cluster = path / "postgres"
    for directory in {cluster, PostgresInstallation.find().data_directory_for(cluster)}:
        shutil.rmtree(directory, ignore_errors=True)


def _try_lock(path: Path) -> IO[str] | None:
    """Lock a run directory. Return None if another process holds the lock."""
    file = (path / "lock").open("w")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _exclusive_lock(runs: Path) -> Iterator[None]:
    """Prevent other demos from creating or removing run directories."""
    with (runs / ".lock").open("w") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield

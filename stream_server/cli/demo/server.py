"""`stream-server serve` as a child process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx

from stream_server.cli.demo.ports import LOOPBACK, NO_PROXY, NO_TLS, choose_port
from stream_server.cli.demo.processes import ChildProcess, log_path, module_command, wait_until
from stream_server.cli.demo.progress import SilentReporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stream_server.cli.demo.progress import ProgressReporter

START_SECONDS = 60.0
INSTALL_SECONDS = 60.0
STOP_SECONDS = 10.0
REQUEST_SECONDS = 5.0


class StreamServerProcess:
    """One stream_server process.

    Args:
        name: Name for the user.
        logs: Directory for the log.
        database_url: Airflow's database, with the journal installed.
        airflow_url: Address of Airflow's REST API.
        port: Port, or None for a free one. It stays the same after a restart.
        options: Further options of `serve`.
        environment: The complete environment; None for that of this process.
    """

    def __init__(
        self,
        name: str,
        logs: Path,
        *,
        database_url: str,
        airflow_url: str,
        port: int | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = choose_port(port, "stream_server")
        self.url = f"http://{LOOPBACK}:{self.port}"
        command = module_command(
            "stream_server",
            "serve",
            f"--host={LOOPBACK}",
            f"--port={self.port}",
            f"--database-url={database_url}",
            f"--airflow-url={airflow_url}",
            f"--airflow-ui-url={airflow_url}",
            *options,
        )
        self.child = ChildProcess(name, command, log=log_path(logs, name), environment=environment)

    def start(self, progress: ProgressReporter | None = None, within: float = START_SECONDS) -> None:
        """Start the process and wait until it is ready.

        Raises:
            StartError: It ended, or was not ready within `within` seconds.
        """
        self.child.start()
        self.wait_until_ready(progress or SilentReporter(), within)

    def wait_until_ready(self, progress: ProgressReporter, within: float = START_SECONDS) -> None:
        """Wait until `GET /ready` returns 200.

        Raises:
            StartError: It ended, or was not ready within `within` seconds.
        """
        wait_until(self.is_ready, within=within, waiting_for=self.child, progress=progress)

    def is_ready(self) -> bool:
        """Whether `GET /ready` returns 200."""
        try:
            return httpx.get(f"{self.url}/ready", timeout=REQUEST_SECONDS, trust_env=False, verify=NO_TLS).is_success
        except httpx.TransportError:
            return False

    def stop(self, within: float = STOP_SECONDS) -> None:
        """Stop the process after it has drained its clients."""
        self.child.stop(within)

    def restart(self) -> None:
        self.stop()
        self.start()


def server_environment() -> dict[str, str]:
    """Return the environment without the user's settings of another stream_server."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_SERVER_")}
    return {**inherited, **NO_PROXY}


def install_journal(logs: Path, database_url: str, progress: ProgressReporter) -> None:
    """Run `stream-server install`.

    Raises:
        StartError: The command failed.
    """
    name = "stream-server install"
    command = module_command("stream_server", "install", "--database-url", database_url)
    child = ChildProcess(name, command, log=log_path(logs, name), environment=server_environment())
    child.start()
    try:
        wait_until(lambda: child.exit_code == 0, within=INSTALL_SECONDS, waiting_for=child, progress=progress)
    finally:
        child.stop()

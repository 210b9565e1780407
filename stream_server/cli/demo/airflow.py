"""The processes of a real Airflow, and their environment."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import secrets
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.ports import LOOPBACK, NO_PROXY, NO_TLS, choose_port
from stream_server.cli.demo.processes import ChildProcess, log_path, module_command, stop_all, wait_for_call, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from stream_server.cli.demo.progress import ProgressReporter

START_SECONDS = 300.0
# Short, because the scheduler waits for running tasks before it ends.
STOP_SECONDS = 3.0

PASSWORDS_FILE = "simple_auth_manager_passwords.json.generated"


@dataclass(frozen=True)
class Credentials:
    """A user of Airflow's simple auth manager; the username is also the role."""

    username: str
    password: str = field(repr=False)


ADMIN = Credentials("admin", "admin")
VIEWER = Credentials("viewer", "viewer")
USERS = (ADMIN, VIEWER)

# Airflow's defaults reduce the load on a database; these reduce the latency on an idle host.
LOW_LATENCY = {
    "AIRFLOW__CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "1",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
    "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.05",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
}


def airflow_version() -> str:
    """Return the installed Airflow's version, without importing it.

    Raises:
        DemoError: Airflow is not installed.
    """
    try:
        return importlib.metadata.version("apache-airflow")
    except importlib.metadata.PackageNotFoundError:
        raise DemoError(
            "Airflow is missing; install the extra 'demo': pip install 'airflow-stream-server[demo]'"
        ) from None


def airflow_environment(
    home: Path, database_url: str, *, port: int, dags: Sequence[Path], bytecode: Path
) -> dict[str, str]:
    """Return the complete environment of Airflow's processes.

    Args:
        home: AIRFLOW_HOME, with Airflow's own logs.
        database_url: `postgresql://…` with Airflow's role.
        port: Port of the API server.
        dags: Folders with DAG files.
        bytecode: Directory for compiled modules if PYTHONDONTWRITEBYTECODE is set. Compiling all of Airflow in each
            process takes longer than the rest of the start.
    """
    # The user's variables for another Airflow do not apply to this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    if inherited.pop("PYTHONDONTWRITEBYTECODE", None):
        inherited["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return {
        **inherited,
        **NO_PROXY,
        **LOW_LATENCY,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__API__BASE_URL": f"http://{LOOPBACK}:{port}",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{port}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / PASSWORDS_FILE),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{user.username}:{user.username}" for user in USERS),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": dag_bundle_setting(dags),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url.replace("postgresql://", "postgresql+psycopg2://"),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
    }


def dag_bundle_setting(dags: Sequence[Path]) -> str:
    """Return the value of `dag_bundle_config_list` for folders with DAG files."""
    bundles = [
        {
            "name": name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(path)},
        }
        for name, path in _name_bundles(dags).items()
    ]
    return json.dumps(bundles)


def _name_bundles(dags: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by the name of their DAG bundle."""
    return {f"dags-{number}": path for number, path in enumerate(dags, start=1)}


class Airflow:
    """Airflow's API server, scheduler, DAG processor and, optionally, triggerer.

    Args:
        home: AIRFLOW_HOME; created if missing.
        logs: Directory for the logs of the processes.
        database_url: A migrated database.
        dags: Folders with DAG files.
        bytecode: As for `airflow_environment`.
        port: Port of the API server, or None for a free one.
        triggerer: Whether to run a triggerer; deferrable tasks need it.
        settings: Further environment variables: `{"AIRFLOW__CORE__PARALLELISM": "8"}`.
        python: An interpreter with Airflow; None for that of this process.
    """

    def __init__(
        self,
        home: Path,
        logs: Path,
        database_url: str,
        *,
        dags: Sequence[Path],
        bytecode: Path,
        port: int | None = None,
        triggerer: bool = False,
        settings: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> None:
        self.home = home
        self.python = python
        self._folders = _name_bundles(dags)
        self._reported_files: set[Path] = set()
        self.port = choose_port(port, "Airflow")
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.environment = airflow_environment(home, database_url, port=self.port, dags=dags, bytecode=bytecode) | dict(
            settings or {}
        )
        self.api_server = self._make_child(logs, "api-server", "--host", LOOPBACK, "--port", str(self.port))
        # Without the log server: the API server reads task logs from the same disk.
        self.scheduler = self._make_child(logs, "scheduler", "--skip-serve-logs")
        self.dag_processor = self._make_child(logs, "dag-processor")
        self._components = {"scheduler": self.scheduler, "dag_processor": self.dag_processor}
        if triggerer:
            self._components["triggerer"] = self._make_child(logs, "triggerer", "--skip-serve-logs")
        self.children = [self.api_server, *self._components.values()]

    def start(self) -> None:
        """Start the processes. They are ready only after many seconds."""
        self.home.mkdir(parents=True, exist_ok=True)
        passwords = {user.username: user.password for user in USERS}
        (self.home / PASSWORDS_FILE).write_text(json.dumps(passwords))
        for child in self.children:
            child.start()

    def wait_until_healthy(self, progress: ProgressReporter, within: float = START_SECONDS) -> None:
        """Wait until the API server responds and each other process has written a heartbeat.

        Raises:
            StartError: One of the processes ended, or the timeout has passed.
        """
        with self.rest_client() as rest:
            wait_until(
                lambda: rest.fetch_health() is not None,
                within=within,
                waiting_for=self.api_server,
                needed=self.children,
                progress=progress,
            )
            for component, child in self._components.items():
                wait_until(
                    partial(rest.is_healthy, component),
                    within=within,
                    waiting_for=child,
                    needed=self.children,
                    progress=progress,
                )

    def wait_for_dags(
        self,
        dag_ids: Iterable[str],
        progress: ProgressReporter,
        within: float = START_SECONDS,
        *,
        optional_folders: Sequence[Path] = (),
    ) -> None:
        """Wait until Airflow has parsed these DAGs.

        Args:
            dag_ids: The DAGs.
            progress: Updated while waiting.
            within: Timeout in seconds.
            optional_folders: Folders whose import errors are only reported, as by `report_import_errors`.

        Raises:
            DemoError: A DAG file in another folder has an import error.
            StartError: One of the processes ended, or the timeout has passed.
        """
        with self.rest_client() as rest:
            missing = set(dag_ids)

            def has_all_dags() -> bool:
                for dag_id in sorted(missing):
                    if rest.get_dag(dag_id) is not None:
                        missing.discard(dag_id)
                self._report_import_errors(rest, progress, optional_folders)
                return not missing

            wait_until(
                has_all_dags,
                within=within,
                waiting_for=self.dag_processor,
                needed=self.children,
                progress=progress,
            )

    def report_import_errors(self, progress: ProgressReporter) -> None:
        """Print a warning for each DAG file with an import error that was not reported before."""
        with self.rest_client() as rest:
            self._report_import_errors(rest, progress, [*self._folders.values()])

    def _report_import_errors(
        self, rest: AirflowRestClient, progress: ProgressReporter, optional_folders: Sequence[Path]
    ) -> None:
        """Print a warning for each import error of these folders, and raise DemoError for those of other folders."""
        fatal = []
        for bundle, file, trace in rest.get_import_errors():
            # Airflow's setting `load_examples` adds bundles of its own.
            folder = self._folders.get(bundle, Path(bundle))
            path = folder / file
            if folder not in optional_folders:
                fatal.append(f"{path} has an import error:\n{trace}")
            elif path not in self._reported_files:
                self._reported_files.add(path)
                progress.print_line(f"Warning: {path} has an import error: {trace.strip().splitlines()[-1]}")
        if fatal:
            raise DemoError("\n".join(fatal))

    def warm_up(self, progress: ProgressReporter, within: float = START_SECONDS) -> None:
        """Make the API server create its Execution API; otherwise the first task waits for that.

        Raises:
            StartError: One of the processes ended, or the timeout has passed.
        """
        wait_for_call(
            lambda: httpx.get(f"{self.url}/execution/health", timeout=within, trust_env=False, verify=NO_TLS),
            within=within,
            waiting_for=self.api_server,
            needed=self.children,
            progress=progress,
        )

    def rest_client(self, user: Credentials = ADMIN) -> AirflowRestClient:
        """Return a client of the REST API. Use it in a with statement."""
        return AirflowRestClient(self.url, user.username, user.password)

    def stop(self, within: float = STOP_SECONDS) -> None:
        """End all processes and their descendants."""
        stop_all(self.children, within)

    def _make_child(self, logs: Path, command: str, *arguments: str) -> ChildProcess:
        name = f"Airflow {command}"
        return ChildProcess(
            name,
            module_command("airflow", command, *arguments, python=self.python),
            log=log_path(logs, name),
            environment=self.environment,
        )

"""PostgreSQL, Airflow and stream_server as child processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import stream_server
from stream_server.cli.demo import server, template_cluster
from stream_server.cli.demo.airflow import ADMIN, Airflow
from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.processes import stop_all
from stream_server.cli.demo.progress import SilentReporter, report_step
from stream_server.cli.demo.run_directory import RunDirectory
from stream_server.cli.demo.server import StreamServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from stream_server.cli.demo.airflow_client import AirflowRestClient
    from stream_server.cli.demo.progress import ProgressReporter


def example_dags() -> Path:
    """Return the folder of the example DAGs: in the installed package, or in a checkout.

    Raises:
        DemoError: Neither folder exists.
    """
    package = Path(stream_server.__file__).parent
    for folder in (package / "cli" / "demo" / "dags", package.parent / "examples" / "dags"):
        if folder.is_dir():
            return folder
    raise DemoError(f"the example DAGs are missing from {package}")


class DemoStack:
    """A complete stack on the loopback interface, in its own run directory.

    `start` starts all processes and `stop` ends them; a with statement does both.

    Args:
        data_dir: The demo's data directory, usually `.demo`, for template clusters and run directories.
        dags: Folders with DAG files, in addition to the examples. An import error of an example stops the start; others
            are reported.
        examples: Whether to load the example DAGs.
        port: Port of stream_server; None for a free one, as for the other ports.
        airflow_port: Port of Airflow's API server.
        postgres_port: Port of PostgreSQL.
        postgres_settings: Server settings: `{"fsync": "off"}`.
        airflow_settings: Environment variables of Airflow's processes.
        airflow_python: An interpreter with Airflow; None for that of this process.
        triggerer: Whether to run Airflow's triggerer.
        serve: Whether to install the journal and run stream_server.
        serve_options: Further options of `serve`.
        progress: Receives the steps.

    Raises:
        DemoError: A port is not available, or a program is missing.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        dags: Sequence[Path] = (),
        examples: bool = True,
        port: int | None = None,
        airflow_port: int | None = None,
        postgres_port: int | None = None,
        postgres_settings: Mapping[str, str] | None = None,
        airflow_settings: Mapping[str, str] | None = None,
        airflow_python: Path | None = None,
        triggerer: bool = False,
        serve: bool = True,
        serve_options: Sequence[str] = (),
        progress: ProgressReporter | None = None,
    ) -> None:
        self.credentials = ADMIN
        self._cache_dir = data_dir / "cache"
        self._reporter = progress or SilentReporter()
        self._with_server = serve
        self._serve_options = serve_options
        self._added_servers: list[StreamServerProcess] = []
        folders = [example_dags()] if examples else []
        self._added_folders = [path.absolute() for path in dags]
        self._examples = sorted(path.stem for folder in folders for path in folder.glob("*.py"))
        self.directory = RunDirectory(data_dir)
        try:
            self.postgres = EmbeddedPostgres(
                self.directory.postgres,
                port=postgres_port,
                settings=postgres_settings,
                log=self.directory.logs / "postgresql.log",
            )
            self.airflow = Airflow(
                self.directory.airflow_home,
                self.directory.logs,
                self.postgres.url(),
                dags=[*folders, *self._added_folders],
                bytecode=template_cluster.bytecode_dir(self._cache_dir),
                port=airflow_port,
                triggerer=triggerer,
                settings=airflow_settings,
                python=airflow_python,
            )
            self.server = self._make_server("stream_server", port)
        except BaseException:
            self.directory.remove()
            raise

    @property
    def database_url(self) -> str:
        """URL of Airflow's database, with the role that owns it."""
        return self.postgres.url()

    @property
    def airflow_url(self) -> str:
        """Address of Airflow's API and UI."""
        return self.airflow.url

    @property
    def server_url(self) -> str:
        """Address of stream_server."""
        return self.server.url

    @property
    def logs(self) -> Path:
        """Directory with the logs of the processes."""
        return self.directory.logs

    def start(self) -> None:
        """Start all processes and wait until tasks can start without delay.

        Raises:
            DemoError: A process did not start. `stop` ends the others.
        """
        self.start_database()
        self.start_services()

    def start_database(self) -> None:
        """Start PostgreSQL with Airflow's migrated database.

        Raises:
            DemoError: PostgreSQL did not start.
        """
        template_dir = template_cluster.ensure_template(self._cache_dir, self._reporter)
        with report_step(self._reporter, "Starting PostgreSQL"):
            template_cluster.clone_template(template_dir, self.directory.postgres)
            self.postgres.start()

    def start_services(self) -> None:
        """Start Airflow and stream_server, and wait until tasks can start without delay.

        Raises:
            DemoError: A process did not start. `stop` ends the others.
        """
        # Airflow first, because it takes longest: stream_server starts while Airflow's processes import modules.
        self.airflow.start()
        if self._with_server:
            with report_step(self._reporter, "Starting stream_server"):
                server.install_journal(self.logs, self.database_url, self._reporter)
                self.server.start(self._reporter)
        with report_step(self._reporter, "Starting Airflow"):
            self.airflow.wait_until_healthy(self._reporter)
        with report_step(self._reporter, "Loading the example DAGs"):
            self.airflow.wait_for_dags(self._examples, self._reporter, optional_folders=self._added_folders)
        with report_step(self._reporter, "Warming up Airflow's task API"):
            self.airflow.warm_up(self._reporter)

    def raise_if_ended(self) -> None:
        """Raise StartError if one of the processes has ended."""
        for child in (
            self.postgres.child,
            *self.airflow.children,
            *([self.server.child] if self._with_server else []),
        ):
            child.raise_if_ended()

    def add_server(self, *, port: int | None = None, options: Sequence[str] = ()) -> StreamServerProcess:
        """Return a further stream_server on the same database. It is not started; `stop` stops it."""
        replica = self._make_server(f"stream_server {len(self._added_servers) + 2}", port, options)
        self._added_servers.append(replica)
        return replica

    def rest_client(self) -> AirflowRestClient:
        """Return a client of Airflow's REST API for the admin. Use it in a with statement."""
        return self.airflow.rest_client(self.credentials)

    def stop(self, *, keep_logs: bool = False) -> None:
        """End all processes that were started, and remove the run directory.

        Args:
            keep_logs: Whether to keep the logs.
        """
        stop_all([each.child for each in (self.server, *self._added_servers)], server.STOP_SECONDS)
        self.airflow.stop()
        self.postgres.stop()
        if keep_logs:
            self.directory.keep_logs()
        else:
            self.directory.remove()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(keep_logs=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(keep_logs=error is not None)

    def _make_server(self, name: str, port: int | None, options: Sequence[str] = ()) -> StreamServerProcess:
        return StreamServerProcess(
            name,
            self.logs,
            database_url=self.database_url,
            airflow_url=self.airflow_url,
            port=port,
            options=[*self._serve_options, *options],
            environment=server.server_environment(),
        )

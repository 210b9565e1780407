"""PostgreSQL, Airflow and stream_server together, as children of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import stream_server
from stream_server.cli.demo import server, template
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
    """Return the folder of the example DAGs: the copy in the installed package, or the checkout's own.

    Raises:
        DemoError: There is neither.
    """
    package = Path(stream_server.__file__).parent
    for folder in (package / "cli" / "demo" / "dags", package.parent / "examples" / "dags"):
        if folder.is_dir():
            return folder
    raise DemoError(f"The example DAGs are missing from {package}")


class DemoStack:
    """A whole stack on the loopback interface, in a run directory of its own.

    Everything is started by ``start`` and ended by ``stop``; a with statement does both.

    Args:
        data_dir: The demo's data directory, usually ``.demo``, for template clusters and run directories.
        dags: Folders with DAG files, besides the examples.
        examples: Whether to have the examples, and to wait for them.
        port: The stream server's; None for a free one, as with the others.
        airflow_port: The Airflow API server's.
        postgres_port: PostgreSQL's.
        postgres_settings: Server settings: ``{"fsync": "off"}``.
        airflow_settings: Environment variables of Airflow's processes.
        airflow_python: The interpreter that has Airflow; ours if None.
        triggerer: Whether to run Airflow's triggerer too.
        serve: Whether to install the journal and run the stream server.
        serve_options: Further options of ``serve``.
        progress: Is told what is being waited for.

    Raises:
        DemoError: A given port is taken, or a program is missing.
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
                dags=[*folders, *(path.absolute() for path in dags)],
                bytecode=template.bytecode_dir(self._cache_dir),
                port=airflow_port,
                triggerer=triggerer,
                settings=airflow_settings,
                python=airflow_python,
            )
            self.server = self._make_server("Stream server", port)
        except BaseException:
            self.directory.remove()
            raise

    @property
    def database_url(self) -> str:
        """Airflow's database, as the role that owns it."""
        return self.postgres.url()

    @property
    def airflow_url(self) -> str:
        """Airflow's API server and user interface."""
        return self.airflow.url

    @property
    def server_url(self) -> str:
        """The stream server."""
        return self.server.url

    @property
    def logs(self) -> Path:
        """Directory of the processes' logs."""
        return self.directory.logs

    def start(self) -> None:
        """Start everything and wait until the first task would start at once.

        Raises:
            DemoError: Something did not start; what did is stopped by ``stop``.
        """
        self.start_database()
        self.start_services()

    def start_database(self) -> None:
        """Start PostgreSQL with Airflow's migrated database.

        Raises:
            DemoError: It did not start.
        """
        template_dir = template.ensure_template(self._cache_dir, self._reporter)
        with report_step(self._reporter, "Starting PostgreSQL"):
            template.clone_template(template_dir, self.directory.postgres)
            self.postgres.start()

    def start_services(self) -> None:
        """Start all the rest, and wait until the first task would start at once.

        Raises:
            DemoError: Something did not start; what did is stopped by ``stop``.
        """
        # Airflow needs longest: all else happens while its processes import it.
        self.airflow.start()
        if self._with_server:
            with report_step(self._reporter, "Starting the stream server"):
                server.install_journal(self.logs, self.database_url, self._reporter)
                self.server.start(self._reporter)
        with report_step(self._reporter, "Starting Airflow"):
            self.airflow.wait_until_healthy(self._reporter)
        with report_step(self._reporter, "Reading the example DAGs"):
            self.airflow.wait_for_dags(self._examples, self._reporter)
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
        """Return one more stream server on the same database, not started yet; the stack will stop it."""
        replica = self._make_server(f"Stream server {len(self._added_servers) + 2}", port, options)
        self._added_servers.append(replica)
        return replica

    def rest_client(self) -> AirflowRestClient:
        """Return a client of Airflow's REST API, logged in as admin, for a with statement."""
        return self.airflow.rest_client(self.credentials)

    def stop(self, *, keep_logs: bool = False) -> None:
        """End all processes, whatever has been started of them, and remove the run directory.

        Args:
            keep_logs: Leave the logs where they are.
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

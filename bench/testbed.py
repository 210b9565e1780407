"""The system under test: a PostgreSQL with real durability, Airflow's schema, the journal, and a real server."""

from __future__ import annotations

import argparse
import os
import signal
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from stream_server.cli.demo import template_cluster
from stream_server.cli.demo.airflow import ADMIN
from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.progress import ConsoleReporter, SilentReporter
from stream_server.cli.demo.run_directory import RunDirectory
from stream_server.cli.demo.server import StreamServerProcess, install_journal
from stream_server.cli.demo.stack import DemoStack
from stream_server.settings import ENV_PREFIX

DATA_DIR = Path(__file__).resolve().parents[1] / ".demo"

# No server listens there: streams make no request to Airflow's API.
NO_AIRFLOW = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Testbed:
    """A running database and a running server."""

    database_url: str
    server_url: str
    server: psutil.Process

    def server_seconds(self) -> float:
        """Return the CPU time that the server has used."""
        times = self.server.cpu_times()
        return times.user + times.system


def add_stack_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for `airflow_stack`."""
    parser.add_argument(
        "--stack",
        nargs=2,
        metavar=("SERVER_URL", "AIRFLOW_URL"),
        help="use a stack that runs, such as that of `make demo`, instead of a new one",
    )


@contextmanager
def airflow_stack(
    running: Sequence[str] | None, dags: Sequence[Path] = (), settings: Mapping[str, str] | None = None
) -> Iterator[tuple[str, AirflowRestClient]]:
    """Yield the address of a stream server, and the REST API of its Airflow.

    Args:
        running: The addresses of both, if they run; otherwise they are started.
        dags: Folders with DAG files, besides the examples.
        settings: Environment variables of an Airflow that is started.
    """
    if running:
        server_url, airflow_url = running
        with AirflowRestClient(airflow_url, ADMIN.username, ADMIN.password) as airflow:
            yield server_url, airflow
        return
    with (
        DemoStack(Path(".demo"), dags=dags, airflow_settings=settings, progress=ConsoleReporter()) as stack,
        stack.rest_client() as airflow,
    ):
        yield stack.server_url, airflow


@contextmanager
def running_database(postgres_settings: Mapping[str, str] | None = None) -> Iterator[tuple[str, RunDirectory]]:
    """Run a PostgreSQL with the journal; it is stopped and removed at the end in any case."""
    directory = RunDirectory(DATA_DIR)
    postgres = EmbeddedPostgres(directory.postgres, settings=postgres_settings, log=directory.logs / "postgresql.log")
    try:
        template_cluster.clone_template(
            template_cluster.ensure_template(DATA_DIR / "cache", ConsoleReporter()), directory.postgres
        )
        postgres.start()
        url = postgres.url(template_cluster.DATABASE, template_cluster.ROLE)
        install_journal(directory.logs, url, SilentReporter())
        yield url, directory
    finally:
        postgres.stop("immediate")
        directory.remove()


@contextmanager
def running_server(url: str, directory: RunDirectory, *options: str, **settings: str) -> Iterator[StreamServerProcess]:
    """Run a server with default settings except these; it is stopped at the end."""
    found = StreamServerProcess(
        "stream server",
        directory.logs,
        database_url=url,
        airflow_url=NO_AIRFLOW,
        options=("--auth", "none", *options),
        environment={
            **{name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)},
            **{f"{ENV_PREFIX}{name.upper()}": value for name, value in settings.items()},
        },
    )
    try:
        found.start()
        yield found
    finally:
        found.stop()


@contextmanager
def running_testbed(postgres_settings: Mapping[str, str] | None = None, **settings: str) -> Iterator[Testbed]:
    """Run a database and a server with default settings except these; both are stopped and removed at the end."""
    with running_database(postgres_settings) as (url, directory), running_server(url, directory, **settings) as started:
        yield Testbed(url, started.url, psutil.Process(started.child.pid))


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Raise SystemExit at SIGTERM, so that everything is stopped as with Ctrl-C."""

    def raise_exit(_number: int, _frame: types.FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

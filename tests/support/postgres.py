"""A real PostgreSQL with Airflow's schema."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stream_server.cli.demo import template
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DATA_DIR = Path(__file__).resolve().parents[2] / ".demo"

# A crash of the machine may lose data of tests, but what a killed server has committed must survive.
FAST = {"fsync": "off", "full_page_writes": "off"}

_numbers = itertools.count(1)


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a cluster that is a copy of the template; tests copy its database ``airflow``.

    Args:
        settings: Server settings, in addition to those that make it fast.
    """
    directory = RunDirectory(DATA_DIR)
    server = EmbeddedPostgres(
        directory.postgres, settings={**FAST, **(settings or {})}, log=directory.logs / "postgresql.log"
    )
    try:
        template.clone_template(template.ensure_template(DATA_DIR / "cache", ConsoleReporter()), directory.postgres)
        server.start()
        yield server
    finally:
        server.stop("immediate")
        directory.remove()


def create_database_from_airflow_template(postgres: EmbeddedPostgres) -> str:
    """Copy the migrated Airflow database, owned by the role `airflow`; return the name of the copy."""
    name = f"airflow_{os.getpid()}_{next(_numbers)}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE {template.DATABASE} OWNER {template.ROLE}")
    return name


def drop_database(postgres: EmbeddedPostgres, name: str) -> None:
    """Drop a database with its connections. A server that a test has stopped is started for it."""
    if not postgres.is_running:
        postgres.start()
    postgres.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

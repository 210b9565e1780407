"""A real PostgreSQL with Airflow's schema."""

from __future__ import annotations

import itertools
import os
import shutil
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from stream_server.cli.demo import template_cluster
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.run_directory import RunDirectory
from stream_server.journal.installer import install_journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DATA_DIR = Path(__file__).resolve().parents[2] / ".demo"

# A crash of the machine may lose data of tests, but what a killed server has committed must survive.
FAST = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}

# Copies of a database are hundreds of files: on a busy disk, they take most of the time of a test.
MEMORY_DIR = Path(f"/dev/shm/stream-server-tests-{os.getuid()}")
CLUSTER_BYTES = 2 * 2**30

WITH_JOURNAL = "airflow_with_journal"
"""Database that `create_database_with_journal` copies."""

_numbers = itertools.count(1)
_clusters_with_journal: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()
_unneeded: weakref.WeakKeyDictionary[EmbeddedPostgres, list[str]] = weakref.WeakKeyDictionary()


@contextmanager
def running_postgres(
    settings: Mapping[str, str] | None = None, *, in_memory: bool = True
) -> Iterator[EmbeddedPostgres]:
    """Run a cluster that is a copy of the template; tests copy its database ``airflow``.

    Args:
        settings: Server settings, in addition to those that make it fast.
        in_memory: Whether it may be in memory, if there is room for a few small databases.
    """
    directory = make_run_directory() if in_memory else RunDirectory(DATA_DIR)
    server = EmbeddedPostgres(
        directory.postgres, settings={**FAST, **(settings or {})}, log=directory.logs / "postgresql.log"
    )
    try:
        template_cluster.clone_template(
            template_cluster.ensure_template(DATA_DIR / "cache", ConsoleReporter()), directory.postgres
        )
        server.start()
        yield server
    finally:
        server.stop("immediate")
        directory.remove()


def make_run_directory() -> RunDirectory:
    """Create a directory for a cluster: in memory, if `/dev/shm` and the memory have room for two."""
    memory = MEMORY_DIR.parent
    room = shutil.disk_usage(memory).free if memory.is_dir() else 0
    in_memory = min(room, psutil.virtual_memory().available) > 2 * CLUSTER_BYTES
    return RunDirectory(MEMORY_DIR if in_memory else DATA_DIR)


def create_database_from_airflow_template(postgres: EmbeddedPostgres) -> str:
    """Copy the migrated Airflow database, owned by the role `airflow`; return the name of the copy."""
    return _copy_database(postgres, template_cluster.DATABASE)


async def create_database_with_journal(postgres: EmbeddedPostgres) -> str:
    """Copy the migrated Airflow database with the journal installed; return the name of the copy.

    The journal is installed once for each cluster, so that copies have the same epoch.
    """
    if postgres not in _clusters_with_journal:
        postgres.execute(
            f"CREATE DATABASE {WITH_JOURNAL} TEMPLATE {template_cluster.DATABASE} OWNER {template_cluster.ROLE}"
        )
        await install_journal(postgres.url(WITH_JOURNAL), "public", lock_timeout=5, attempts=1)
        _clusters_with_journal.add(postgres)
    return _copy_database(postgres, WITH_JOURNAL)


def _copy_database(postgres: EmbeddedPostgres, source: str) -> str:
    name = f"airflow_{os.getpid()}_{next(_numbers)}"
    statements = [
        *map(_drop_statement, _unneeded.pop(postgres, [])),
        f"CREATE DATABASE {name} TEMPLATE {source} OWNER {template_cluster.ROLE} STRATEGY FILE_COPY",
    ]
    postgres.execute(";\n".join(statements))
    return name


def drop_database_later(postgres: EmbeddedPostgres, name: str) -> None:
    """Drop a database with its connections together with the creation of the next: it saves a session of psql.

    A server that a test has stopped is started.
    """
    if not postgres.is_running:
        postgres.start()
    _unneeded.setdefault(postgres, []).append(name)


def drop_database(postgres: EmbeddedPostgres, name: str) -> None:
    """Drop a database with its connections. A server that a test has stopped is started for it."""
    if not postgres.is_running:
        postgres.start()
    postgres.execute(_drop_statement(name))


def _drop_statement(name: str) -> str:
    return f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"

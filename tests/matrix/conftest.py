"""Airflow's own commands on a real PostgreSQL. Tests fail if an older Airflow cannot be installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from uv import find_uv_bin

from matrix.airflow_processes import AirflowProcesses
from matrix.environments import BUILD_SECONDS
from matrix.upgraded_databases import UpgradedDatabases
from stream_server.cli.demo import airflow, template_cluster
from stream_server.cli.demo.postgres import EmbeddedPostgres
from support.postgres import DATA_DIR

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def base_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base distribution as `pip install airflow-stream-server` installs it, with its dependencies."""
    target = tmp_path_factory.mktemp("light")
    command = [find_uv_bin(), "pip", "install", "--python", sys.executable, "--target", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="session")
def airflow_processes(
    postgres: EmbeddedPostgres, base_distribution: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowProcesses]:
    """Processes of each version of Airflow, with the base distribution."""
    environment = airflow.airflow_environment(
        tmp_path_factory.mktemp("airflow"),
        postgres.url(),
        port=0,
        dags=[],
        bytecode=template_cluster.bytecode_dir(DATA_DIR / "cache"),
    )
    processes = AirflowProcesses({**environment, "PYTHONPATH": str(base_distribution)})
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def all_databases(postgres: EmbeddedPostgres, airflow_processes: AirflowProcesses) -> UpgradedDatabases:
    """Databases upgraded from Airflow 3.0, for the whole session."""
    return UpgradedDatabases(postgres, airflow_processes)


@pytest.fixture
def databases(all_databases: UpgradedDatabases) -> Iterator[UpgradedDatabases]:
    """The upgraded databases; copies that a test makes are dropped after the test."""
    yield all_databases
    all_databases.drop_copies()

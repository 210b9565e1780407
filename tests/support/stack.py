"""A whole stack, once for all tests of a session that need one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from support.airflow_callers import RARE_GARBAGE, DeniedPermissions, airflow_settings
from support.airflow_version import HAS_LOOPS
from support.authoring_forms import DAGS
from support.example_dags import example_folders
from support.postgres import DATA_DIR, FAST

BROWSER_DAGS = Path(__file__).resolve().parents[1] / "browser" / "dags"
NEWEST_DAGS = [
    Path(__file__).resolve().parents[1] / "airflow" / name
    for name in ("dags_3_1", "dags_3_3", *(("dags_3_4",) if HAS_LOOPS else ()))
]
"""DAG files that not every version of Airflow can read."""

FOR_CHECK = ("example_simplest_dag", "tutorial_dag")
"""DAGs of Airflow, in files of the same names, that `make check-examples` runs on the stack."""

EXAMPLES = ("example_hitl_operator", *FOR_CHECK)
"""Files of Airflow and its standard provider that are loaded, too."""

PLUGINS = Path(__file__).resolve().parents[1] / "airflow" / "plugins"

QUIET = {
    # Parsing all files again and again takes more than half a core.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # No test changes a DAG file while Airflow runs; looking for changes takes a twentieth of a core.
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "60",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "600",
    # A loop of the idle scheduler takes 20 ms of CPU time, with its queries: at 0.1 s, a fifth of a core all the time.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    # Garbage collections take a fifth of the CPU time of a start.
    "PYTHONPATH": str(RARE_GARBAGE),
}
"""Settings of an Airflow of any version whose DAG files do not change."""

LOW_LOAD = {**QUIET, "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS)}
"""Settings of an Airflow of a version that the plugins support."""


@pytest.fixture(scope="session")
def denied_permissions(tmp_path_factory: pytest.TempPathFactory) -> DeniedPermissions:
    """Permissions that Airflow denies: none, unless a test denies some."""
    return DeniedPermissions(tmp_path_factory.mktemp("airflow") / "denied.json")


@pytest.fixture(scope="session")
def shipped_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some of the example DAGs that Airflow ships: reading all of them takes a core for a minute."""
    folder = tmp_path_factory.mktemp("shipped_examples")
    for path in (path for shipped in example_folders() for path in shipped.glob("*.py") if path.stem in EXAMPLES):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def stack(denied_permissions: DeniedPermissions, shipped_examples: Path) -> Iterator[DemoStack]:
    """PostgreSQL, Airflow with the examples and the tests' DAGs, and a stream server. Tests fail if it cannot start."""
    # Tests of permissions start servers of their own.
    options = ("--auth", "none")
    with DemoStack(
        DATA_DIR,
        dags=[DAGS, BROWSER_DAGS, *NEWEST_DAGS, shipped_examples],
        postgres_settings=FAST,
        airflow_settings={**LOW_LOAD, **airflow_settings(denied_permissions.path)},
        serve_options=options,
        progress=ConsoleReporter(),
    ) as stack:
        yield stack

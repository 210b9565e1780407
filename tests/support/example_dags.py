"""The example DAGs that the installed Airflow ships, and what is special about some of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "airflow.example_dags",
    "airflow.providers.common.sql.example_dags",
    "airflow.providers.standard.example_dags",
)

INSTALLS = "installs packages into virtual environments"

NOT_RUN: Mapping[str, str] = {
    "example_analytics": "needs a database connection",
    "example_branch_operator": INSTALLS,
    "example_branch_python_operator_decorator": INSTALLS,
    "example_external_task_marker_child": "waits for a run of another DAG with the same logical date",
    "example_python_decorator": INSTALLS,
    "example_python_operator": INSTALLS,
    "example_retry_policy": "asks a service of the internet, and tries again for minutes",
    "example_sensors": "waits until one hour later: a deferred sensor without regard to its timeout",
    "tutorial_taskflow_api_virtualenv": INSTALLS,
}
"""DAGs that do not end by themselves without network, other services or other DAGs, each with the reason."""

WITHOUT_DAGS: Mapping[str, str] = {
    "example_kubernetes_executor.py": "needs the provider cncf.kubernetes",
    "example_local_kubernetes_executor.py": "needs the provider cncf.kubernetes",
}
"""Files that define no DAG here, each with the reason."""

PARTNERS: Mapping[str, tuple[str, ...]] = {"example_external_task": ("child_dag",)}
"""DAGs whose runs another DAG triggers and waits for."""

REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "example_params_ui_tutorial": {"conf": {"required_field": "given by the check"}},
}
"""Members of the request that triggers a run, where Airflow refuses one without them."""


def example_folders() -> list[Path]:
    """Return the folders of the installed packages."""
    folders: list[Path] = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"the package {package} is not installed"
        folders.extend(map(Path, spec.submodule_search_locations or ()))
    return folders


def example_files(folder: Path) -> list[Path]:
    """Return the files of a folder that define DAGs, sorted by name."""
    return sorted(path for path in folder.glob("*.py") if path.name not in {"__init__.py", *WITHOUT_DAGS})

"""The example DAGs that the installed Airflow ships, and what is special about some of them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Mapping
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

PLUGINS = "airflow.example_dags.plugins"
"""Module of the plugins that some of the files import."""

LISTED = frozenset({*NOT_RUN, *PARTNERS, *REQUESTS, *(dag_id for partners in PARTNERS.values() for dag_id in partners)})
"""DAGs of which something is known here."""


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


def files_naming(dag_ids: Collection[str]) -> list[Path]:
    """Return the files that may define these DAGs: those with one of the names as a word, or as that of the file."""
    if not dag_ids:
        return []
    words = re.compile(rf"\b({'|'.join(map(re.escape, dag_ids))})\b")
    files = [path for folder in example_folders() for path in example_files(folder)]
    return [path for path in files if path.stem in dag_ids or words.search(path.read_text())]

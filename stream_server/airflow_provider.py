"""Airflow provider metadata, the entry point `apache_airflow_provider`.

Not in `authoring`, because Airflow calls it in each of its processes, most of which need nothing else of this package.
"""

from __future__ import annotations

from typing import Any

from stream_server import __version__


def get_provider_info() -> dict[str, Any]:
    """Return what `airflow/provider_info.schema.json` describes; registers `@task.result` and `@task.stream`."""
    return {
        "package-name": "airflow-stream-server",
        "name": "Stream server",
        "description": "Trigger an Airflow DAG and stream its run and result live.",
        "versions": [__version__],
        "task-decorators": [
            {"name": "result", "class-name": "stream_server.authoring.decorators.result"},
            {"name": "stream", "class-name": "stream_server.authoring.stream.stream"},
        ],
    }

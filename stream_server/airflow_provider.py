"""What Airflow is told about this distribution, through the entry point `apache_airflow_provider`.

Apart from `authoring`: Airflow asks for it in each of its processes, where nothing needs the rest.
"""

from __future__ import annotations

from typing import Any

from stream_server import __version__


def get_provider_info() -> dict[str, Any]:
    """Return what `airflow/provider.yaml.schema.json` describes: it registers `@task.result` and `@task.stream`."""
    return {
        "package-name": "airflow-stream-server",
        "name": "Stream server",
        "description": "Trigger an Airflow DAG and watch it answer.",
        "versions": [__version__],
        "task-decorators": [
            {"name": "result", "class-name": "stream_server.authoring.decorators.result"},
            {"name": "stream", "class-name": "stream_server.authoring.stream.stream"},
        ],
    }

"""A real Airflow on an embedded PostgreSQL, for `stream-server demo` and the tests.

Nothing here imports Airflow: it runs in child processes, as `python -m airflow`.
"""

from __future__ import annotations

from stream_server.cli.demo.command import run_demo
from stream_server.cli.demo.errors import DemoError, StartError
from stream_server.cli.demo.stack import DemoStack

__all__ = ["DemoError", "DemoStack", "StartError", "run_demo"]

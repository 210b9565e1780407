"""What the installed Airflow has."""

from __future__ import annotations

from stream_server.cli.demo.airflow import airflow_version

MINOR = tuple(int(part) for part in airflow_version().split(".")[:2])
"""`(3, 4)` also for a pre-release of 3.4."""

HAS_LOOPS = MINOR >= (3, 4)
"""Whether there are task loops, and Airflow stores its own result marks."""

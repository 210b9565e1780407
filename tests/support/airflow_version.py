"""What the installed Airflow has, and what this Python can run."""

from __future__ import annotations

import sys

from stream_server.cli.demo.airflow import airflow_version

MINOR = tuple(int(part) for part in airflow_version().split(".")[:2])
"""`(3, 4)` also for a pre-release of 3.4."""

HAS_LOOPS = MINOR >= (3, 4)
"""Whether there are task loops, and Airflow stores its own result marks."""

HAS_AGENTS = sys.version_info >= (3, 11)
"""Whether this Python can run the provider common.ai."""

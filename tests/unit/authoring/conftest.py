"""Airflow makes a folder for its logs as soon as it is imported; it shall not be in anybody's home."""

from __future__ import annotations

import atexit
import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="airflow-")
atexit.register(_home.cleanup)
os.environ["AIRFLOW_HOME"] = _home.name

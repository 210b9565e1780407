"""Airflow creates a folder for its logs when it is imported; keep it out of the home directory."""

from __future__ import annotations

import atexit
import os
import tempfile

_home = tempfile.TemporaryDirectory(prefix="airflow-")
atexit.register(_home.cleanup)
os.environ["AIRFLOW_HOME"] = _home.name

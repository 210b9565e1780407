"""Benchmarks of stream_server on a real PostgreSQL with Airflow's schema."""

from __future__ import annotations

import sys
from pathlib import Path

# Airflow's writes as SQL are in `tests/support`, which is not part of the installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

"""Fixtures of every tier."""

from __future__ import annotations

pytest_plugins = ["support.airflow_stub_fixtures", "support.fixtures", "support.stack"]

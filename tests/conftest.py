"""Fixtures of every tier."""

from __future__ import annotations

from support.fast_start import keep_bytecode, share_tls_contexts

keep_bytecode()
share_tls_contexts()

pytest_plugins = ["support.airflow_stub_fixtures", "support.fixtures", "support.stack"]

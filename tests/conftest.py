"""Fixtures of every tier."""

from __future__ import annotations

import gc

from support.fast_start import (
    collect_garbage_rarely,
    keep_bytecode,
    load_no_pydantic_plugins,
    share_tls_contexts,
)

collect_garbage_rarely()
keep_bytecode()
load_no_pydantic_plugins()
share_tls_contexts()

pytest_plugins = ["support.airflow_stub_fixtures", "support.fixtures", "support.stack"]


def pytest_collection_finish() -> None:
    """Except all modules from garbage collections: each one during the tests would visit their objects."""
    gc.collect()
    gc.freeze()

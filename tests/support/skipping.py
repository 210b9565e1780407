"""Tests whose requirements are missing: skipped, or failed where CI=true."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"
"""In CI a skipped test would go unnoticed."""


def skip_or_fail(why: str) -> NoReturn:
    """Skip the test, or the module that is imported, with a reason. Where CI=true, fail it."""
    if IN_CI:
        pytest.fail(why)
    pytest.skip(why, allow_module_level=True)

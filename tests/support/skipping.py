"""What tests need and do not find is a failure where CI=true; elsewhere a test that was left out, and says so."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

IN_CI = os.environ.get("CI") == "true"
"""Whether nobody waits for the tests, and nobody would see what was left out."""


def leave_out(why: str) -> NoReturn:
    """Leave a test out, and say why. Where CI=true it fails."""
    if IN_CI:
        pytest.fail(why)
    pytest.skip(why)

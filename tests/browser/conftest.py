"""A real Chromium. Where CI=true a missing one is a failure; elsewhere the tier says that it was left out."""

from __future__ import annotations

import pytest

from support.debian import program

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium: one on PATH, else Debian's package where it may be installed."""
    return program("chromium", *NAMES)

"""A real Chromium for Open WebUI."""

from __future__ import annotations

import pytest

from support.system_programs import find_or_install


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Chromium on PATH. As root, Debian's package is installed if there is none."""
    return find_or_install("chromium", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

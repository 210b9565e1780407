"""A real Chromium. Where CI=true a missing one is a failure; elsewhere the tier says that it was left out."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium: one on PATH, else Debian's package where it may be installed."""
    found = _on_path()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found = _on_path()
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on PATH")
    assert found is not None, f"none of {', '.join(NAMES)} is on PATH, and it cannot be installed"
    return found


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)

"""Programs that tests need and no Python package brings."""

from __future__ import annotations

import os
import shutil
import subprocess

from support.skipping import leave_out

PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
"""Debian puts servers where only root's PATH leads."""


def program(package: str, *names: str) -> str:
    """Return the path of a program: one on PATH, else from Debian's package where it may be installed.

    Where CI=true a missing one is a failure; elsewhere the test says that it was left out.
    """
    found = _on_path(names)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
            subprocess.run(
                ["apt-get", "-qq", *command],
                check=True,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        found = _on_path(names)
    if found is None:
        leave_out(f"none of {', '.join(names)} is on PATH, and {package} cannot be installed")
    return found


def _on_path(names: tuple[str, ...]) -> str | None:
    return next(filter(None, (shutil.which(name, path=PATHS) for name in names)), None)

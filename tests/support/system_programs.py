"""Programs that tests need and that no Python package contains."""

from __future__ import annotations

import os
import shutil
import subprocess

from support.locks import exclusive_lock
from support.skipping import skip_or_fail

PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
"""Debian installs servers into directories that only root has on PATH."""


def find_or_install(package: str, *names: str) -> str:
    """Return the path of a program on PATH. As root, install Debian's package if there is none.

    Without it, the test is skipped, or fails where CI=true.
    """
    found = _on_path(names)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with exclusive_lock("apt"):
            found = _on_path(names) or _install(package, names)
    if found is None:
        skip_or_fail(f"none of {', '.join(names)} is on PATH, and {package} cannot be installed")
    return found


def _install(package: str, names: tuple[str, ...]) -> str | None:
    for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
        subprocess.run(
            ["apt-get", "-qq", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    return _on_path(names)


def _on_path(names: tuple[str, ...]) -> str | None:
    return next(filter(None, (shutil.which(name, path=PATHS) for name in names)), None)

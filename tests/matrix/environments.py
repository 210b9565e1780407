"""Environments with other versions of Airflow, each built once from the constraints beside this file.

All checkouts of a user share them, below `$XDG_CACHE_HOME` or `~/.cache`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

from support.fast_start import CACHE
from support.locks import exclusive_lock

CONSTRAINTS = Path(__file__).with_name("constraints")
BUILD_SECONDS = 600.0

UPCOMING = "3.4.0b2"
"""A pre-release of the version after the one that the `demo` extra installs."""

HAS_UPCOMING = sys.version_info >= (3, 11)
"""Whether this Python can run it."""


def environment_python(version: str) -> Path:
    """Return the interpreter of an environment with this version of Airflow; build it if it does not exist.

    Raises:
        AssertionError: It cannot be built; the message ends with uv's output.
    """
    return build_environment(f"airflow-{version}", CONSTRAINTS / f"airflow-{version}.txt")


def build_environment(name: str, pins: Path) -> Path:
    """Return the interpreter of an environment with pinned packages; build it if it does not exist.

    Raises:
        AssertionError: It cannot be built; the message ends with uv's output.
    """
    contents = hashlib.sha256(f"{sys.version} {sys.base_prefix}\n".encode() + pins.read_bytes()).hexdigest()
    directory = CACHE / f"{name}-{contents[:16]}"
    python = directory / "bin" / "python"
    complete = directory / "complete"
    with exclusive_lock(directory.name, CACHE):
        if not complete.exists():
            # Scripts contain the path of their environment, so it is built in place; the marker file completes it.
            shutil.rmtree(directory, ignore_errors=True)
            _uv("venv", "--python", sys.executable, str(directory))
            _uv("pip", "sync", "--python", str(python), str(pins))
            complete.touch()
    return python


def _uv(*arguments: str) -> None:
    done = subprocess.run(
        [find_uv_bin(), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, f"uv {' '.join(arguments)} failed:\n{done.stdout}"

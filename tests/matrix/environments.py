"""Environments with older versions of Airflow, each built once from the constraints beside this file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

from support.locks import exclusive_lock
from support.postgres import DATA_DIR

CONSTRAINTS = Path(__file__).with_name("constraints")
CACHE = DATA_DIR / "cache"
BUILD_SECONDS = 600.0


def environment_python(version: str) -> Path:
    """Return the interpreter of an environment with this version of Airflow; build it if it does not exist.

    Raises:
        AssertionError: It cannot be built; the message ends with uv's output.
    """
    pins = CONSTRAINTS / f"airflow-{version}.txt"
    directory = CACHE / f"airflow-{version}"
    python = directory / "bin" / "python"
    complete = directory / "complete"
    wanted = hashlib.sha256(f"{sys.version} {sys.base_prefix}\n".encode() + pins.read_bytes()).hexdigest()
    CACHE.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(directory.name):
        if not complete.exists() or complete.read_text() != wanted:
            # Scripts contain the path of their environment, so it is built in place; the marker file completes it.
            shutil.rmtree(directory, ignore_errors=True)
            _uv("venv", "--python", sys.executable, str(directory))
            _uv("pip", "sync", "--python", str(python), str(pins))
            complete.write_text(wanted)
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

"""Locks between test processes that run at the same time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.postgres import DATA_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def exclusive_lock(name: str, directory: Path = DATA_DIR / "cache") -> Iterator[None]:
    """Hold the lock of this name, a file in the directory. It is released when its holder exits."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"{name}.lock").open("w") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield

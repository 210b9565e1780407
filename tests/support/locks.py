"""Locks between test processes that run at the same time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.postgres import DATA_DIR

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Hold the lock of this name. It is released when its holder exits."""
    cache = DATA_DIR / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield

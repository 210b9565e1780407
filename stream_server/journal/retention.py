"""Retention: deletes the oldest rows of the journal in small batches, on one server at a time.

No reader may miss a row because it was deleted too early. So a round deletes only rows that were visible to the round
before it: the time between two rounds is longer than that between two reads of a tail. The age of a row is not enough:
a transaction may write a row and commit an hour later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from stream_server.errors import Unavailable
from stream_server.journal.run_store import RunStore

log = logging.getLogger(__name__)

BATCH_ROWS = 1000
"""Maximum number of rows that one transaction deletes."""

PAUSE_SECONDS = 0.1
"""Pause between two batches, so that pruning does not take all of the database's time."""

ROUND_SECONDS = (60.0, 10.0)
"""Longest time between two rounds: with a bound on the age only, and with a bound on the size, which may grow fast."""


class Retention(NamedTuple):
    """Bounds of the journal."""

    max_age: float | None
    """Seconds; `None` sets no bound."""

    max_bytes: int | None
    """Bytes of the rows and their index entries; `None` sets no bound."""

    @property
    def is_bounded(self) -> bool:
        """Whether rows are deleted at all."""
        return self.max_age is not None or self.max_bytes is not None

    @property
    def interval(self) -> float:
        """Average seconds between two rounds."""
        longest = ROUND_SECONDS[0 if self.max_bytes is None else 1]
        return longest if self.max_age is None else min(longest, self.max_age / 2)


async def prune_forever(run_store: RunStore, retention: Retention, on_pruned: Callable[[int], None]) -> None:
    """Delete rows beyond the bounds until cancelled.

    Args:
        run_store: Deletes the rows.
        retention: The bounds.
        on_pruned: Called after each batch with the number of deleted rows.
    """
    settled: str | None = None
    while True:
        try:
            settled = await _prune_round(run_store, retention, settled, on_pruned)
        except Unavailable as error:
            log.warning("Cannot prune the journal: %s", error, extra={"action": "prune_failed"})
        await asyncio.sleep(retention.interval * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets


async def _prune_round(
    run_store: RunStore, retention: Retention, settled: str | None, on_pruned: Callable[[int], None]
) -> str:
    """Delete in batches until no row is left to delete. Return the snapshot that limits the next round."""
    snapshot = await run_store.read_snapshot()
    onward = False
    while settled is not None:
        deleted = await run_store.prune_journal(
            retention.max_age, BATCH_ROWS, retention.max_bytes, settled=settled, onward=onward
        )
        if deleted == 0:
            break
        on_pruned(deleted)
        onward = True
        await asyncio.sleep(PAUSE_SECONDS)
    return snapshot

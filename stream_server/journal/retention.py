"""Keeping the journal short: its oldest rows are deleted in small batches, by one replica at a time.

Nobody may miss a row because it was deleted before he could read it. So a round deletes only what the round before
could already see, which is longer ago than a tail waits between two reads. By their age alone one could not tell: a
transaction may write a row and commit it an hour later.
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
"""Rows that one transaction deletes at most."""

PAUSE_SECONDS = 0.1
"""Between two batches, so that deleting is never all that the database does."""

ROUND_SECONDS = (60.0, 10.0)
"""From one round to the next: where age alone is bounded, and where the size is, which may grow fast."""


class Retention(NamedTuple):
    """What the journal may hold."""

    max_age: float | None
    """Seconds; `None` sets no bound."""

    max_bytes: int | None
    """Bytes of its rows and their part of the index; `None` sets no bound."""

    @property
    def is_bounded(self) -> bool:
        """Whether anything is ever deleted."""
        return self.max_age is not None or self.max_bytes is not None

    @property
    def interval(self) -> float:
        """Seconds from one round to the next."""
        longest = ROUND_SECONDS[0 if self.max_bytes is None else 1]
        return longest if self.max_age is None else min(longest, self.max_age / 2)


async def prune_forever(runs: RunStore, retention: Retention, pruned: Callable[[int], None]) -> None:
    """Delete what is beyond the retention, until cancelled.

    Args:
        runs: Where to delete.
        retention: What may stay.
        pruned: Is told how many rows each batch has deleted.
    """
    settled: str | None = None
    while True:
        try:
            settled = await _prune_round(runs, retention, settled, pruned)
        except Unavailable as error:
            log.warning("The journal was not pruned: %s", error, extra={"action": "prune_failed"})
        await asyncio.sleep(retention.interval * random.uniform(0.5, 1.5))  # noqa: S311 # not for secrets


async def _prune_round(runs: RunStore, retention: Retention, settled: str | None, pruned: Callable[[int], None]) -> str:
    """Delete in batches until nothing is left to delete, and return what the next round may."""
    seen = await runs.read_snapshot()
    onward = False
    while settled is not None:
        deleted = await runs.prune_journal(
            retention.max_age, BATCH_ROWS, retention.max_bytes, settled=settled, onward=onward
        )
        if deleted == 0:
            break
        pruned(deleted)
        onward = True
        await asyncio.sleep(PAUSE_SECONDS)
    return seen

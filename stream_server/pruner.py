"""Keeping the journal short: old rows are deleted in small batches, by one replica at a time."""

from __future__ import annotations

import asyncio
import logging
import random

from stream_server.errors import Unavailable
from stream_server.journal.postgres import Runs

log = logging.getLogger(__name__)

BATCH_ROWS = 1000
"""Rows that one transaction deletes at most."""

PAUSE_SECONDS = 0.1
"""Between two batches, so that deleting is never all that the database does."""

IDLE_SECONDS = 60.0
"""How long to wait when nothing is old enough."""


async def prune_forever(runs: Runs, age: float) -> None:
    """Delete rows older than `age` seconds, until cancelled."""
    while True:
        more = await _prune_once(runs, age) > 0
        idle = min(IDLE_SECONDS, age / 2) * random.uniform(0.5, 1.5)  # noqa: S311 # not for secrets
        await asyncio.sleep(PAUSE_SECONDS if more else idle)


async def _prune_once(runs: Runs, age: float) -> int:
    try:
        return await runs.prune(age, BATCH_ROWS)
    except Unavailable as error:
        log.warning("The journal was not pruned: %s", error, extra={"action": "prune_failed"})
        return 0

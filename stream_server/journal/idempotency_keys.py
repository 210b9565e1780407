"""Which run a request with an `Idempotency-Key` triggers, agreed on by all replicas."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.journal.run_store import RunStore


class ClaimedRun(NamedTuple):
    """Which run a key stands for."""

    run_id: str
    is_same_request: bool
    """Whether it was claimed for the same request."""

    is_new: bool
    """Whether it was claimed just now."""


class IdempotencyKeys:
    """The claims in a database. Its functions write with the rights of who installed them.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `Runs` does.
    """

    def __init__(self, runs: RunStore) -> None:
        self._run_store = runs

    async def claim_run(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> ClaimedRun:
        """Claim a run for a key, or learn which one was claimed before.

        Args:
            key: Digest of the key.
            request: Digest of what is asked.
            run_id: The run that is claimed, if nobody came before us.
            lifetime: Seconds for which the claim stands.
        """
        async with self._run_store.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["claim"], key, request, run_id, lifetime)
        assert row is not None, "the function returns one row"
        return ClaimedRun(row["claimed_run"], row["claimed_for"] == request, row["first"])

    async def release_run(self, key: bytes, run_id: str) -> None:
        """Give the claim of a run back."""
        async with self._run_store.acquire_connection() as (connection, queries):
            await connection.execute(queries["release"], key, run_id)

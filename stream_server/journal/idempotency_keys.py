"""Idempotency keys in the database: which run a request with an `Idempotency-Key` triggers, the same on all servers."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.journal.run_store import RunStore


class ClaimedRun(NamedTuple):
    """The run that has the claim on a key."""

    run_id: str
    is_same_request: bool
    """Whether the claim was made by an identical request."""

    is_new: bool
    """Whether this call made the claim."""


class IdempotencyKeys:
    """The table `stream_server.claims`, written through functions that run with the rights of the installing role.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `RunStore` does.
    """

    def __init__(self, run_store: RunStore) -> None:
        self._run_store = run_store

    async def claim_run(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> ClaimedRun:
        """Claim a run for a key. Return the run that has the claim, which may be an earlier one.

        Args:
            key: Digest of the key.
            request: Digest of the request.
            run_id: The run to claim.
            lifetime: Seconds after which the claim expires.
        """
        async with self._run_store.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["claim_run"], key, request, run_id, lifetime)
        assert row is not None, "the function returns one row"
        return ClaimedRun(row["claimed_run"], row["claimed_for"] == request, row["first"])

    async def release_run(self, key: bytes, run_id: str) -> None:
        async with self._run_store.acquire_connection() as (connection, queries):
            await connection.execute(queries["release_run"], key, run_id)

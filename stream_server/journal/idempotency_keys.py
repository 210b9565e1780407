"""Idempotency keys in the database: which run a request with an `Idempotency-Key` triggers, the same on all servers."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from stream_server.errors import JournalForbidden, JournalMissing, ReadReplica
from stream_server.journal.run_store import RunStore

RENEWAL_BYTES = 8

CANNOT_STORE = (JournalForbidden, JournalMissing, ReadReplica)
"""Errors of servers that can store nothing: there is no journal, a privilege is missing, or it is a read replica."""


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
        return ClaimedRun(row["claimed_run"], row["claimed_for"].startswith(request), row["first"])

    async def replace_run(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> None:
        """Claim a run for a key that may have another run. Of concurrent calls, the last one has the claim."""
        async with self._run_store.acquire_connection() as (connection, queries), connection.transaction():
            # A released row stays locked until the commit, so that no call comes between.
            while True:
                row = await connection.fetchrow(queries["claim_run"], key, request, run_id, lifetime)
                assert row is not None, "the function returns one row"
                if row["first"]:
                    return
                await connection.execute(queries["release_run"], key, row["claimed_run"])

    async def renew_claim(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> bytes:
        """Let the claim of a run expire after `lifetime` seconds. The claim of another run stays as it is.

        Returns:
            What the claim has instead of the digest of the request from now on, for `limit_claim`.
        """
        renewal = request + secrets.token_bytes(RENEWAL_BYTES)
        async with self._run_store.acquire_connection() as (connection, queries), connection.transaction():
            while True:
                # As in `replace_run`.
                row = await connection.fetchrow(queries["claim_run"], key, renewal, run_id, lifetime)
                assert row is not None, "the function returns one row"
                if row["first"] or row["claimed_run"] != run_id:
                    return renewal
                await connection.execute(queries["release_run"], key, run_id)

    async def limit_claim(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> None:
        """Let the claim of a run expire after `lifetime` seconds, unless it was renewed or is that of another run.

        Args:
            key: Digest of the key.
            request: Digest of the request that has made the claim, or what `renew_claim` returned for it.
            run_id: The run.
            lifetime: Seconds after which the claim expires.
        """
        async with self._run_store.acquire_connection() as (connection, queries), connection.transaction():
            # This locks the row, also if it leaves it as it is.
            row = await connection.fetchrow(queries["claim_run"], key, request, run_id, lifetime)
            assert row is not None, "the function returns one row"
            if not row["first"] and (row["claimed_run"], row["claimed_for"]) == (run_id, request):
                await connection.execute(queries["release_run"], key, run_id)
                await connection.execute(queries["claim_run"], key, request, run_id, lifetime)

    async def find_run(self, key: bytes) -> str | None:
        """Return the run that has the claim on a key; `None` if there is none."""
        async with self._run_store.acquire_connection() as (connection, queries):
            transaction = connection.transaction()
            await transaction.start()
            try:
                # There is no query that only reads a claim. Concurrent calls wait for the end of the transaction.
                row = await connection.fetchrow(queries["claim_run"], key, b"", "", 0.0)
            finally:
                await transaction.rollback()
        assert row is not None, "the function returns one row"
        return None if row["first"] else str(row["claimed_run"])

    async def release_run(self, key: bytes, run_id: str) -> None:
        async with self._run_store.acquire_connection() as (connection, queries):
            await connection.execute(queries["release_run"], key, run_id)

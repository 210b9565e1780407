"""Which run a request with an `Idempotency-Key` triggers, agreed on by all replicas."""

from __future__ import annotations

from typing import NamedTuple

from stream_server.journal.run_store import Runs


class Claim(NamedTuple):
    """Which run a key stands for."""

    run_id: str
    same: bool
    """Whether it was claimed for the same request."""

    first: bool
    """Whether it was claimed just now."""


class Claims:
    """The claims in a database. Its functions write with the rights of who installed them.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `Runs` does.
    """

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def claim(self, key: bytes, request: bytes, run_id: str, lifetime: float) -> Claim:
        """Claim a run for a key, or learn which one was claimed before.

        Args:
            key: Digest of the key.
            request: Digest of what is asked.
            run_id: The run that is claimed, if nobody came before us.
            lifetime: Seconds for which the claim stands.
        """
        async with self._runs.connection() as (connection, queries):
            row = await connection.fetchrow(queries["claim"], key, request, run_id, lifetime)
        assert row is not None, "the function returns one row"
        return Claim(row["claimed_run"], row["claimed_for"] == request, row["first"])

    async def release(self, key: bytes, run_id: str) -> None:
        """Give the claim of a run back."""
        async with self._runs.connection() as (connection, queries):
            await connection.execute(queries["release"], key, run_id)

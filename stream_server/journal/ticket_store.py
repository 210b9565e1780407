"""Tickets that are not used yet, where every replica finds them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from stream_server.journal.run_store import RunStore


class StoredTicket(NamedTuple):
    """What a ticket stood for."""

    paths: list[str]
    sealed_credential: bytes
    is_valid: bool
    """Whether it came in time."""


class TicketStore:
    """The tickets in a database. Its functions write with the rights of who installed them.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `Runs` does.
    """

    def __init__(self, runs: RunStore) -> None:
        self._run_store = runs

    async def store_ticket(
        self, digest: bytes, holder: bytes, paths: Sequence[str], sealed: bytes, *, lifetime: float, most: int
    ) -> datetime | None:
        """Keep a ticket, and return when it expires; `None` where its holder has too many.

        Args:
            digest: Of the ticket.
            holder: Digest of whose it is.
            paths: What it is for.
            sealed: The caller's credential.
            lifetime: Seconds for which it is good.
            most: How many the holder may have.
        """
        async with self._run_store.acquire_connection() as (connection, queries):
            arguments = (digest, holder, list(paths), sealed, lifetime, most)
            expires: datetime | None = await connection.fetchval(queries["keep_ticket"], *arguments)
        return expires

    async def redeem_ticket(self, digest: bytes) -> StoredTicket | None:
        """Take a ticket away, and return what it stood for."""
        async with self._run_store.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["redeem_ticket"], digest)
        return None if row is None else StoredTicket(row["for_paths"], row["sealed"], row["good"])

"""Unused tickets in the database, where every server finds them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from stream_server.journal.run_store import RunStore


class StoredTicket(NamedTuple):
    """A ticket that was redeemed."""

    paths: list[str]
    sealed_credential: bytes
    is_valid: bool
    """Whether it had not expired."""


class TicketStore:
    """The table `stream_server.tickets`, written through functions that run with the rights of the installing role.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `RunStore` does.
    """

    def __init__(self, run_store: RunStore) -> None:
        self._run_store = run_store

    async def store_ticket(
        self,
        digest: bytes,
        holder: bytes,
        paths: Sequence[str],
        sealed_credential: bytes,
        *,
        lifetime: float,
        max_per_holder: int,
    ) -> datetime | None:
        """Store a ticket, and return when it expires, or `None` if its holder has too many.

        Args:
            digest: Digest of the ticket.
            holder: Digest that identifies the caller.
            paths: URL paths that the ticket opens.
            sealed_credential: The caller's credential, encrypted with the ticket.
            lifetime: Seconds after which it expires.
            max_per_holder: Maximum number of unused tickets of one holder.
        """
        async with self._run_store.acquire_connection() as (connection, queries):
            arguments = (digest, holder, list(paths), sealed_credential, lifetime, max_per_holder)
            expires: datetime | None = await connection.fetchval(queries["store_ticket"], *arguments)
        return expires

    async def redeem_ticket(self, digest: bytes) -> StoredTicket | None:
        """Delete a ticket and return it; `None` if there is none with this digest."""
        async with self._run_store.acquire_connection() as (connection, queries):
            row = await connection.fetchrow(queries["redeem_ticket"], digest)
        return None if row is None else StoredTicket(row["for_paths"], row["sealed"], row["good"])

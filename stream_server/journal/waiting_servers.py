"""Servers with clients that watch a run which is cancelled when the last client disconnects."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID, uuid4

from stream_server.domain.run_state import RunKey
from stream_server.journal.run_store import RunStore


class WaitingServers:
    """The table `stream_server.waiters`, written through functions that run with the rights of the installing role.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `RunStore` does. On a read
    replica nothing is registered, and no other server is found.
    """

    def __init__(self, run_store: RunStore) -> None:
        self._run_store = run_store
        self._server_id: UUID = uuid4()

    async def register_runs(
        self, keys: Collection[RunKey], lifetime: float, *, beside_others: bool
    ) -> frozenset[RunKey]:
        """Register this server for some runs, and return the runs that were registered.

        Args:
            keys: The runs.
            lifetime: Seconds after which the registration expires.
            beside_others: Register only runs that another server has registered.
        """
        return await self._call("register_runs", keys, lifetime, beside_others)

    async def unregister_runs(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        """Unregister this server, and return the runs that other servers have registered."""
        return await self._call("unregister_runs", keys)

    async def _call(self, query: str, keys: Collection[RunKey], *arguments: object) -> frozenset[RunKey]:
        dag_ids, run_ids = [key.dag_id for key in keys], [key.run_id for key in keys]
        async with self._run_store.acquire_connection() as (connection, queries):
            rows = await connection.fetch(queries[query], dag_ids, run_ids, self._server_id, *arguments)
        return frozenset(RunKey(row["waited_dag"], row["waited_run"]) for row in rows)

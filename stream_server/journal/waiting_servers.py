"""Which servers have clients who watch a run that shall be stopped when nobody does."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID, uuid4

from stream_server.domain.run_state import RunKey
from stream_server.journal.run_store import RunStore


class WaitingServers:
    """The notes of all servers in a database. Its functions write with the rights of who installed them.

    Every method raises `JournalForbidden`, `JournalMissing` and `JournalUnreachable` as `Runs` does. A read replica
    takes no note, and knows of nobody else's.
    """

    def __init__(self, runs: RunStore) -> None:
        self._run_store = runs
        self._server_id: UUID = uuid4()

    async def register_runs(
        self, keys: Collection[RunKey], lifetime: float, *, beside_others: bool
    ) -> frozenset[RunKey]:
        """Note that clients of this server watch some runs, and return those runs.

        Args:
            keys: The runs.
            lifetime: Seconds for which the note stands.
            beside_others: Only for those runs for which another server has noted it, too.
        """
        return await self._call("wait", keys, lifetime, beside_others)

    async def unregister_runs(self, keys: Collection[RunKey]) -> frozenset[RunKey]:
        """Take the notes back, and return those runs that clients of other servers watch."""
        return await self._call("wait_no_more", keys)

    async def _call(self, query: str, keys: Collection[RunKey], *arguments: object) -> frozenset[RunKey]:
        dag_ids, run_ids = [key.dag_id for key in keys], [key.run_id for key in keys]
        async with self._run_store.acquire_connection() as (connection, queries):
            rows = await connection.fetch(queries[query], dag_ids, run_ids, self._server_id, *arguments)
        return frozenset(RunKey(row["waited_dag"], row["waited_run"]) for row in rows)

"""Which tasks were cancelled by a client, the same on all servers: a claim, as of idempotency keys.

The run of a cancelled task is a failed run of Airflow, as any other.
"""

from __future__ import annotations

from contextlib import suppress

from stream_server.domain.run_state import RunKey
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest
from stream_server.journal.idempotency_keys import CANNOT_STORE

PURPOSE = "cancelled task of MCP"
"""Separates these claims from those of idempotency keys."""


async def store_cancellation(state: State, key: RunKey) -> None:
    """Store that a task was cancelled, where that is possible."""
    with suppress(*CANNOT_STORE):
        lifetime = state["settings"].idempotency_ttl
        await state["idempotency_keys"].claim_run(_digest_of(key), b"", key.run_id, lifetime)


async def was_cancelled(state: State, key: RunKey) -> bool:
    """Whether a client has cancelled the task, as far as that could be stored."""
    try:
        return await state["idempotency_keys"].find_run(_digest_of(key)) is not None
    except CANNOT_STORE:
        return False


def _digest_of(key: RunKey) -> bytes:
    return compute_digest([PURPOSE, *key])

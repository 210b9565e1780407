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


async def store_cancellation(state: State, key: RunKey, clear_number: int) -> bool:
    """Store that a task was cancelled, where that is possible. Return whether it was not stored before.

    Args:
        state: The state of the application.
        key: The run of the task.
        clear_number: How often the run was cleared: after another clear, the task is not cancelled any more.
    """
    lifetime = state["settings"].idempotency_ttl
    try:
        claim = await state["idempotency_keys"].claim_run(_digest_of(key, clear_number), b"", key.run_id, lifetime)
    except CANNOT_STORE:
        return False
    return claim.is_new


async def release_cancellation(state: State, key: RunKey, clear_number: int) -> None:
    """Drop the cancellation of a task that was not cancelled after all."""
    with suppress(*CANNOT_STORE):
        await state["idempotency_keys"].release_run(_digest_of(key, clear_number), key.run_id)


async def was_cancelled(state: State, key: RunKey, clear_number: int) -> bool:
    """Whether a client has cancelled the task since the last clear, as far as that could be stored."""
    try:
        return await state["idempotency_keys"].find_run(_digest_of(key, clear_number)) is not None
    except CANNOT_STORE:
        return False


def _digest_of(key: RunKey, clear_number: int) -> bytes:
    return compute_digest([PURPOSE, *key, clear_number])

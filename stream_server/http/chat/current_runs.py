"""The run of the last question of a conversation, the same on all servers: a claim, as of idempotency keys."""

from __future__ import annotations

from contextlib import suppress

from stream_server.domain.run_state import RunKey
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest
from stream_server.journal.idempotency_keys import CANNOT_STORE


async def store_current_run(state: State, key: RunKey, purpose: str, conversation_id: str) -> None:
    """Store the run of a conversation, where that is possible.

    Args:
        state: The state of the application.
        key: The run.
        purpose: Separates the claims of a protocol from those of others, and from idempotency keys.
        conversation_id: Id of the conversation, as the client names it.
    """
    digest, lifetime = _digest_of(key.dag_id, purpose, conversation_id), state["settings"].idempotency_ttl
    with suppress(*CANNOT_STORE):
        await state["idempotency_keys"].replace_run(digest, b"", key.run_id, lifetime)


async def find_current_run(state: State, dag_id: str, purpose: str, conversation_id: str) -> RunKey | None:
    """Return the run of a conversation; `None` if it has none, or it was not stored, or too long ago."""
    try:
        run_id = await state["idempotency_keys"].find_run(_digest_of(dag_id, purpose, conversation_id))
    except CANNOT_STORE:
        return None
    return None if run_id is None else RunKey(dag_id, run_id)


def _digest_of(dag_id: str, purpose: str, conversation_id: str) -> bytes:
    return compute_digest([purpose, dag_id, conversation_id])

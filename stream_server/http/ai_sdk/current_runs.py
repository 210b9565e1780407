"""The run that answers the last question of a chat, the same on all servers: a claim, as of idempotency keys."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalForbidden, JournalMissing, ReadReplica
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest

PURPOSE = "chat of the AI SDK"
"""Separates these claims from those of idempotency keys."""

CANNOT_STORE = (JournalForbidden, JournalMissing, ReadReplica)
"""Errors of servers that store nothing. There chats can't be resumed."""

NO_RUN = ""


async def store_current_run(state: State, key: RunKey, chat_id: str) -> None:
    """Store the run of a chat, where that is possible."""
    keys, digest = state["idempotency_keys"], _digest_of(key.dag_id, chat_id)
    lifetime = state["settings"].idempotency_ttl
    try:
        claim = await keys.claim_run(digest, b"", key.run_id, lifetime)
        if claim.run_id != key.run_id:
            await keys.release_run(digest, claim.run_id)
            await keys.claim_run(digest, b"", key.run_id, lifetime)
    except CANNOT_STORE:
        return


async def find_current_run(state: State, dag_id: str, chat_id: str) -> RunKey | None:
    """Return the run of a chat; `None` if the chat has none, or it was not stored, or too long ago."""
    keys, digest = state["idempotency_keys"], _digest_of(dag_id, chat_id)
    # There is no query that only reads a claim.
    try:
        claim = await keys.claim_run(digest, b"", NO_RUN, 1.0)
    except CANNOT_STORE:
        return None
    if claim.run_id == NO_RUN:
        await keys.release_run(digest, NO_RUN)
        return None
    return RunKey(dag_id, claim.run_id)


def _digest_of(dag_id: str, chat_id: str) -> bytes:
    return compute_digest([PURPOSE, dag_id, chat_id])

"""The run of the last question of a caller's conversation, the same on all servers: a claim, as of idempotency keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest
from stream_server.journal.idempotency_keys import CANNOT_STORE


async def store_current_run(state: State, caller: Caller, key: RunKey, purpose: str, conversation_id: str) -> None:
    """Store the run of a conversation, where that is possible.

    Args:
        state: The state of the application.
        caller: The caller, which Airflow has accepted. Conversations of others may have the same id.
        key: The run.
        purpose: Separates the claims of a protocol from those of others, and from idempotency keys.
        conversation_id: Id of the conversation, as the client names it.
    """
    digest = _digest_of(state, caller, key.dag_id, purpose, conversation_id)
    with suppress(*CANNOT_STORE):
        lifetime = state["settings"].idempotency_ttl
        await state["idempotency_keys"].replace_run(digest, b"", key.run_id, lifetime)


async def find_current_run(
    state: State, caller: Caller, dag_id: str, purpose: str, conversation_id: str
) -> RunKey | None:
    """Return the run of a conversation; `None` if it has none, or it was not stored, or too long ago."""
    digest = _digest_of(state, caller, dag_id, purpose, conversation_id)
    try:
        run_id = await state["idempotency_keys"].find_run(digest)
    except CANNOT_STORE:
        return None
    return None if run_id is None else RunKey(dag_id, run_id)


def identify_account(state: State, caller: Caller) -> str | Mapping[str, str] | None:
    """Return what separates a caller from others: their user, else their credential; `None` if none is needed."""
    if not state["authorizer"].requires_credential:
        return None
    account = caller.account
    return caller.headers if account is None else account


def _digest_of(state: State, caller: Caller, dag_id: str, purpose: str, conversation_id: str) -> bytes:
    return compute_digest([purpose, identify_account(state, caller), dag_id, conversation_id])

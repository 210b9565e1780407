"""The rate-limit slot of a request and its ticket, which `rate_limiting` keeps in the scope."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import unquote_plus

from starlette.types import Scope

from stream_server.auth.rate_limits import CallerSlot
from stream_server.errors import BadParameter
from stream_server.http.delivery.asgi_scope import SLOT_KEY, TICKET_KEY
from stream_server.http.state import State


def attribute_request(scope: Scope, credential: Mapping[str, str]) -> None:
    """Count a request for the caller with a credential, in place of the address.

    Raises:
        TooManyStreams: The caller has as many streams as allowed.
    """
    state: State = scope["state"]
    if (slot := _slot_to_attribute(scope, credential)) is not None:
        slot.attribute_to(state["rate_limits"].caller_of_credential(credential))


def authenticate_connection(scope: Scope, credential: Mapping[str, str]) -> None:
    """Count a connection, and what is started on it, for the caller with a credential that was verified.

    Raises:
        TooManyJoins: The caller has started too many streams recently.
        TooManyStreams: The caller has as many streams as allowed.
    """
    state: State = scope["state"]
    if (slot := _slot_to_attribute(scope, credential)) is not None:
        caller = state["rate_limits"].caller_of_credential(credential)
        state["rate_limits"].mark_verified(caller)
        slot.authenticate_as(caller, now())


def reattribute_connection(scope: Scope, credential: Mapping[str, str]) -> None:
    """As `authenticate_connection`, but without a limit: the connection is open already."""
    state: State = scope["state"]
    if (slot := _slot_to_attribute(scope, credential)) is not None:
        caller = state["rate_limits"].caller_of_credential(credential)
        state["rate_limits"].mark_verified(caller)
        slot.attribute_without_limit(caller)


def record_join(scope: Scope) -> None:
    """Count the start of another stream on a connection.

    Raises:
        TooManyJoins: The caller has started too many streams recently.
    """
    state: State = scope["state"]
    slot: CallerSlot | None = scope.get(SLOT_KEY)
    if slot is not None:
        state["rate_limits"].record_join(slot.joining_caller, now())


def count_streams(scope: Scope, streams: int) -> None:
    """Count the streams of a connection toward the limit of its caller.

    Raises:
        TooManyStreams: The caller has as many streams as allowed.
    """
    slot: CallerSlot | None = scope.get(SLOT_KEY)
    if slot is not None:
        slot.count_streams(streams)


def _slot_to_attribute(scope: Scope, credential: Mapping[str, str]) -> CallerSlot | None:
    state: State = scope["state"]
    slot: CallerSlot | None = scope.get(SLOT_KEY)
    return slot if credential and state["authorizer"].requires_credential else None


def extract_ticket(scope: Scope) -> None:
    """Move the ticket from the query of a scope to its `TICKET_KEY`, so that it is not logged, echoed or forwarded.

    uvicorn's access log reads the same scope.

    Raises:
        BadParameter: There is more than one ticket.
    """
    query: bytes = scope["query_string"]
    if not query:
        return
    tickets, others = [], []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == "ticket":
            tickets.append(unquote_plus(value.decode("latin-1")))
        else:
            others.append(part)
    if not tickets:
        return
    scope["query_string"] = b"&".join(others)
    if len(tickets) > 1:
        raise BadParameter("`ticket` must not be repeated")
    scope[TICKET_KEY] = tickets[0]


def now() -> float:
    """Return the current time of the clock of joins."""
    return time.monotonic()

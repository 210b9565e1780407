"""What `admitted` notes of a request for those who answer it: the place of its caller, and his ticket."""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import unquote_plus

from starlette.types import Scope

from stream_server.auth.rate_limits import CallerSlot
from stream_server.errors import BadParameter
from stream_server.http.delivery.scope import SLOT_KEY, TICKET_KEY
from stream_server.http.state import State


def attribute_request(scope: Scope, credential: Mapping[str, str]) -> None:
    """Count a request for who shows a credential, instead of for his address: who is refused has no stream.

    Raises:
        TooManyStreams: He has as many as he may.
    """
    state: State = scope["state"]
    place: CallerSlot | None = scope.get(SLOT_KEY)
    if place is not None and credential and state["authorizer"].requires_credential:
        place.attribute_to(state["rate_limits"].caller_of_credential(credential))


def authenticate_connection(scope: Scope, credential: Mapping[str, str]) -> None:
    """Count a connection, and what is begun on it, for who has shown a credential that was good.

    Raises:
        TooManyJoins: He has begun too much of late.
        TooManyStreams: He has as many as he may.
    """
    state: State = scope["state"]
    place: CallerSlot | None = scope.get(SLOT_KEY)
    if place is not None and credential and state["authorizer"].requires_credential:
        identity = state["rate_limits"].caller_of_credential(credential)
        state["rate_limits"].mark_verified(identity)
        place.authenticate_as(identity, now())


def reattribute_connection(scope: Scope, credential: Mapping[str, str]) -> None:
    """Count a connection as `introduce` does, even if its caller has as many streams as he may: it is there already."""
    state: State = scope["state"]
    place: CallerSlot | None = scope.get(SLOT_KEY)
    if place is not None and credential and state["authorizer"].requires_credential:
        identity = state["rate_limits"].caller_of_credential(credential)
        state["rate_limits"].mark_verified(identity)
        place.attribute_without_limit(identity)


def record_join(scope: Scope) -> None:
    """Begin something more on a connection, such as a subscription.

    Raises:
        TooManyJoins: The caller has begun too much of late.
    """
    state: State = scope["state"]
    place: CallerSlot | None = scope.get(SLOT_KEY)
    if place is not None:
        state["rate_limits"].record_join(place.joining_caller, now())


def extract_ticket(scope: Scope) -> None:
    """Take the ticket out of a URL, so that nobody logs it, repeats it or hands it on.

    The scope is that which the server itself logs.

    Raises:
        BadParameter: There are several.
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
        raise BadParameter("ticket= is given more than once")
    scope[TICKET_KEY] = tickets[0]


def now() -> float:
    """Return the time by which joins are counted."""
    return time.monotonic()

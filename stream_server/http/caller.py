"""Who asks: read from a request, and never from its URL, but for tickets."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from stream_server.auth.airflow_api import AirflowApi
from stream_server.auth.authorizer import Caller
from stream_server.auth.tickets import MAX_TICKET_LENGTH, ticket_digest, unseal_credential
from stream_server.errors import AirflowUrlMissing, OriginNotAllowed, TicketRefused
from stream_server.http.delivery.scope import TICKET_KEY
from stream_server.http.params import parse_query
from stream_server.http.request_slot import attribute_request
from stream_server.http.state import State
from stream_server.urls import Origin

CREDENTIAL_HEADERS = (b"authorization", b"cookie")
"""Headers by which callers say who they are. Some auth managers need all cookies."""


async def identify_caller(connection: HTTPConnection) -> Caller:
    """Return who asks.

    Raises:
        TokenInUrl: He gives a token where it does not belong.
        TicketRefused: He gives a ticket that is no good here, or any more.
        ForeignOrigin: A page of another origin asks, with the cookies of its visitor.
        TooManyStreams: He has as many as he may.
    """
    # No token may stand there, whether or not the query is read.
    parse_query(connection)
    if (ticket := connection.scope.get(TICKET_KEY)) is not None:
        caller = await _redeem_ticket(connection, ticket)
    else:
        caller = Caller(read_credential(connection))
        if "cookie" in caller.headers:
            refuse_foreign_origin(connection)
    attribute_request(connection.scope, caller.headers)
    return caller


def read_credential(connection: HTTPConnection) -> dict[str, str]:
    """Return the headers by which somebody says who he is."""
    # Of several, the first counts.
    headers = reversed([*connection.scope["headers"]])
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in CREDENTIAL_HEADERS}


async def _redeem_ticket(connection: HTTPConnection, ticket: str) -> Caller:
    """Return who was given a ticket, which is used up by that."""
    state: State = connection.scope["state"]
    kept = await state["tickets"].redeem_ticket(ticket_digest(ticket)) if len(ticket) <= MAX_TICKET_LENGTH else None
    if kept is None:
        raise TicketRefused("This ticket is used up, has expired, or was never given")
    if not kept.is_valid:
        raise TicketRefused("This ticket has expired")
    if connection.scope["path"] not in kept.paths:
        raise TicketRefused("This ticket is for another path, and used up now")
    headers = unseal_credential(ticket, kept.sealed_credential, kept.paths)
    if headers is None:
        raise TicketRefused("This ticket was changed where it is kept")
    return Caller(headers)


def airflow_api_for(connection: HTTPConnection, caller: Caller) -> AirflowApi:
    """Return Airflow's API as a caller sees it, with his own rights.

    Raises:
        AirflowUnknown: This server was not told where it is.
    """
    state: State = connection.scope["state"]
    client = state["airflow"]
    if client is None:
        raise AirflowUrlMissing
    return AirflowApi(client, caller.headers)


def refuse_foreign_origin(connection: HTTPConnection) -> None:
    """Refuse what a page of another origin asks for with the rights of its visitor.

    Browsers keep neither WebSockets nor plain POSTs from being sent without our consent. Programs that are no browsers
    send no `Origin` (RFC 6455 section 10.2). Where all origins are allowed, it is without cookies, as in WHATWG Fetch
    section 3.2.5.

    Raises:
        ForeignOrigin: The origin is neither ours nor among those that were allowed, or it is none, as `null`.
    """
    state: State = connection.scope["state"]
    origin, allowed = connection.headers.get("origin"), state["settings"].cors_origins
    if origin is None:
        return
    parsed = Origin.parse(origin)
    if parsed is not None and (origin in allowed or parsed.authority == connection.headers.get("host")):
        return
    if "*" not in allowed:
        raise OriginNotAllowed(f"Pages of {origin[:100]} may not ask that here; see STREAM_SERVER_CORS_ORIGINS")
    if "cookie" in connection.headers:
        raise OriginNotAllowed(
            f"Pages of {origin[:100]} may ask that here without cookies only; name them in STREAM_SERVER_CORS_ORIGINS"
        )

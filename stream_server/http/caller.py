"""The caller of a request: their credential or ticket, and the origin of their page."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from stream_server.auth.airflow_api import AirflowApi
from stream_server.auth.authorizer import Caller
from stream_server.auth.tickets import MAX_TICKET_LENGTH, ticket_digest, unseal_credential
from stream_server.errors import AirflowUrlMissing, OriginNotAllowed, TicketRefused
from stream_server.http.delivery.asgi_scope import TICKET_KEY
from stream_server.http.params import parse_query
from stream_server.http.request_slot import attribute_request
from stream_server.http.state import State
from stream_server.urls import Origin

CREDENTIAL_HEADERS = (b"authorization", b"cookie")
"""Headers with a caller's credential. Some auth managers need all cookies."""


async def identify_caller(connection: HTTPConnection) -> Caller:
    """Return the caller of a request, whose streams count for them from now on.

    Raises:
        TokenInUrl: The query has a token.
        TicketRefused: The ticket is invalid, has expired, or is for another path.
        OriginNotAllowed: The request has cookies, and is made by a page of another origin.
        TooManyStreams: The caller has as many streams as allowed.
    """
    # Raises `TokenInUrl`, also where the endpoint reads no query.
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
    """Return the headers with the credential of a request, by name."""
    # Of headers with the same name, the first counts.
    headers = reversed([*connection.scope["headers"]])
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in CREDENTIAL_HEADERS}


async def _redeem_ticket(connection: HTTPConnection, ticket: str) -> Caller:
    """Return the caller for whom a ticket was issued. A ticket can be used once, also if it is refused."""
    state: State = connection.scope["state"]
    stored = await state["tickets"].redeem_ticket(ticket_digest(ticket)) if len(ticket) <= MAX_TICKET_LENGTH else None
    if stored is None:
        raise TicketRefused("This ticket was used already, has expired, or was never issued")
    if not stored.is_valid:
        raise TicketRefused("This ticket has expired")
    if connection.scope["path"] not in stored.paths:
        raise TicketRefused("This ticket is for another path, and can't be used any more")
    headers = unseal_credential(ticket, stored.sealed_credential, stored.paths)
    if headers is None:
        raise TicketRefused("This ticket does not match its record in the database, which was changed")
    return Caller(headers)


def airflow_api_for(connection: HTTPConnection, caller: Caller) -> AirflowApi:
    """Return a client of Airflow's API that has the caller's credential.

    Raises:
        AirflowUrlMissing: `STREAM_SERVER_AIRFLOW_URL` is not set.
    """
    state: State = connection.scope["state"]
    client = state["airflow"]
    if client is None:
        raise AirflowUrlMissing
    return AirflowApi(client, caller.headers)


def refuse_foreign_origin(connection: HTTPConnection) -> None:
    """Raise an error for the request of a page of another origin, unless that origin is allowed.

    Browsers send WebSocket handshakes and plain POSTs to other origins without asking them first, with their cookies.
    Other programs send no `Origin` (RFC 6455 section 10.2). If all origins are allowed, they are without cookies, as in
    WHATWG Fetch section 3.2.5.

    Raises:
        OriginNotAllowed: The origin is neither that of this server nor an allowed one, or it is opaque (`null`).
    """
    state: State = connection.scope["state"]
    origin, allowed = connection.headers.get("origin"), state["settings"].cors_origins
    if origin is None:
        return
    parsed = Origin.parse(origin)
    if parsed is not None and (origin in allowed or parsed.authority == connection.headers.get("host")):
        return
    if "*" not in allowed:
        raise OriginNotAllowed(f"Pages of {origin[:100]} may not make this request; see STREAM_SERVER_CORS_ORIGINS")
    if "cookie" in connection.headers:
        raise OriginNotAllowed(
            f"Pages of {origin[:100]} may make this request without cookies only; add the origin to"
            " STREAM_SERVER_CORS_ORIGINS"
        )

"""`POST /api/v2/stream/tickets`: issue a ticket for the URL of a stream. `http/caller.py` redeems it.

Logs and histories keep URLs, so that a credential does not belong there. A ticket is valid once, for a short time, and
for the requested paths only.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from stream_server.auth.authorizer import Caller
from stream_server.auth.tickets import holder_digest, new_ticket, seal_credential, ticket_digest
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadParameter, BadRequest, TooManyTickets
from stream_server.http.caller import identify_caller, refuse_foreign_origin
from stream_server.http.delivery.asgi_scope import SLOT_KEY
from stream_server.http.params import read_body
from stream_server.http.state import State
from stream_server.protocol.bodies import Ticket
from stream_server.protocol.schema import INVALID_JSON

TICKETS_PATH = "/api/v2/stream/tickets"

MAX_PATHS = 10
"""Maximum number of streams for one ticket, which opens one of them."""

MAX_PATH_LENGTH = 2000

STREAM_PATH_PATTERN = "^/api/v2/(dags/[A-Za-z0-9_.~-]+/(dagRuns/[A-Za-z0-9_.~+:-]+/)?)?stream$"
"""Published pattern of `paths`. IDs may have any other character percent-encoded, which the pattern does not show."""

RUN_STREAM, DAG_STREAM, STREAM = (
    compile_path(path)[0]
    for path in ("/api/v2/dags/{dag_id}/dagRuns/{run_id}/stream", "/api/v2/dags/{dag_id}/stream", "/api/v2/stream")
)


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """Request for a ticket."""

    paths: Annotated[
        list[Annotated[str, msgspec.Meta(extra_json_schema={"pattern": STREAM_PATH_PATTERN})]],
        msgspec.Meta(
            description="Paths of streams, percent-encoded as in a URL, without a query.",
            extra_json_schema={"minItems": 1, "maxItems": MAX_PATHS},
        ),
    ]


async def issue_ticket(request: Request) -> Response:
    state: State = request.scope["state"]
    refuse_foreign_origin(request)
    caller = await identify_caller(request)
    settings, paths = state["settings"], _parse_paths(await read_body(request), state["settings"].url_prefix)
    plain = [*dict.fromkeys(unquote(path) for path in paths)]
    for path in plain:
        await _check_access(state, caller, path)
    ticket, holder = new_ticket(), caller.headers or {"address": str(request.scope[SLOT_KEY].caller)}
    expires = await state["tickets"].store_ticket(
        ticket_digest(ticket),
        holder_digest(holder),
        plain,
        seal_credential(ticket, caller.headers, plain),
        lifetime=settings.ticket_ttl,
        max_per_holder=settings.max_tickets_per_caller,
    )
    if expires is None:
        raise TooManyTickets(
            f"You have {settings.max_tickets_per_caller} unused tickets, the maximum"
            " (STREAM_SERVER_MAX_TICKETS_PER_CALLER); request a ticket only when you need it",
            max(1, round(settings.ticket_ttl)),
        )
    body = Ticket(ticket=ticket, expires_at=expires, paths=paths)
    return Response(msgspec.json.encode(body), 201, {"Cache-Control": "no-store"}, "application/json")


def _parse_paths(body: bytes, url_prefix: str) -> list[str]:
    try:
        paths = [path.removeprefix(url_prefix) for path in msgspec.json.decode(body, type=Wanted).paths]
    except INVALID_JSON as error:
        raise BadRequest(f'The body must be a JSON object such as {{"paths": ["/api/v2/stream"]}}: {error}') from None
    if not 0 < len(paths) <= MAX_PATHS:
        raise BadParameter(f"`paths` must have 1 to {MAX_PATHS} items, got {len(paths)}")
    for path in paths:
        if len(path) > MAX_PATH_LENGTH or not _is_stream_path(path):
            raise BadParameter(
                "`paths` must have paths such as /api/v2/dags/DAG/dagRuns/RUN/stream, /api/v2/dags/DAG/stream or"
                f" /api/v2/stream, without a query, got {path[:100]!r}"
            )
    return paths


def _is_stream_path(path: str) -> bool:
    plain = unquote(path)
    return "?" not in path and any(pattern.match(plain) for pattern in (RUN_STREAM, DAG_STREAM, STREAM))


async def _check_access(state: State, caller: Caller, path: str) -> None:
    """Raise the error that opening the stream would raise: a client sees it better here than in an `EventSource`."""
    if run := RUN_STREAM.match(path):
        await state["authorizer"].check_run(caller, RunKey(run["dag_id"], run["run_id"]))
    elif dag := DAG_STREAM.match(path):
        await state["authorizer"].check_dag(caller, dag["dag_id"])
    else:
        await state["authorizer"].check_dags(caller)

"""Signing in to Airflow from a page, without going there: pages can't ask Airflow themselves, being of another origin.

The token comes back as the cookie that Airflow's own login sets. No script can read it, and since cookies ignore ports
it counts in Airflow's pages on the same host, as theirs counts here.
"""

from __future__ import annotations

import re
from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import AirflowApi
from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowNotResponding, BadRequest
from stream_server.http.caller import airflow_as, caller_of, refuse_foreign_origin
from stream_server.http.params import read_body
from stream_server.http.state import State
from stream_server.protocol.bodies import Session

SESSION_COOKIE = "_token"
"""Of Airflow's login (`airflow.api_fastapi.auth.managers.base_auth_manager.COOKIE_NAME_JWT_TOKEN`)."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
"""What a bearer token may consist of (RFC 6750 section 2.1), as far as it fits into a cookie."""


class SignIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who signs in: by name and password, or with a token that he has."""

    username: str | None = None
    password: str | None = None
    token: str | None = None


async def get_session(request: Request) -> Response:
    """Answer with what a page needs to know before anybody has signed in."""
    state: State = request.scope["state"]
    caller = await caller_of(request)
    session = Session(
        signed_in=state["authorizer"].requires_credential and not caller.is_anonymous,
        airflow_ui_url=state["settings"].airflow_ui_url,
        can_sign_in=state["airflow"] is not None,
    )
    return Response(msgspec.json.encode(session), media_type="application/json", headers={"Cache-Control": "no-store"})


async def sign_in(request: Request) -> Response:
    """Answer with the cookie of who has signed in."""
    # Else a page elsewhere could sign its visitor in as somebody else.
    refuse_foreign_origin(request)
    wanted = _parse_credentials(request, await read_body(request))
    airflow = airflow_as(request, Caller())
    return _cookie_response(request, await _obtain_token(airflow, wanted))


async def sign_out(request: Request) -> Response:
    """Answer by taking the cookie away, and have Airflow revoke it."""
    refuse_foreign_origin(request)
    airflow = airflow_as(request, await caller_of(request))
    # Where Airflow does not answer, the browser forgets it all the same.
    with suppress(AirflowNotResponding):
        await airflow.logout()
    return _cookie_response(request, "")


def _parse_credentials(request: Request, body: bytes) -> SignIn:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequest("Who signs in is told as application/json")
    try:
        wanted = msgspec.json.decode(body, type=SignIn)
    except (msgspec.DecodeError, RecursionError):
        # Its message could repeat what was sent.
        raise BadRequest('Write {"username": …, "password": …} or {"token": …}') from None
    if (wanted.token is None) == (wanted.username is None or wanted.password is None):
        raise BadRequest('Write {"username": …, "password": …} or {"token": …}')
    return wanted


async def _obtain_token(airflow: AirflowApi, wanted: SignIn) -> str:
    if wanted.username is not None and wanted.password is not None:
        token = await airflow.login(wanted.username, wanted.password)
    else:
        token = (wanted.token or "").strip()
    if not _TOKEN.fullmatch(token):
        raise BadRequest("That is no token: it has other characters, or too many")
    return token


def _cookie_response(request: Request, token: str) -> Response:
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    secure = request.scope["scheme"] == "https"
    if token:
        response.set_cookie(SESSION_COOKIE, token, path="/", secure=secure, httponly=True, samesite="lax")
    else:
        response.delete_cookie(SESSION_COOKIE, path="/", secure=secure, httponly=True, samesite="lax")
    return response

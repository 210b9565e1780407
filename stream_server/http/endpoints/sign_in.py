"""`/api/v2/stream/session`: sign in to Airflow from the web pages, which cannot call Airflow on another origin.

The response sets the cookie that Airflow's own login sets. Scripts cannot read it. Cookies ignore ports, so that it is
valid for Airflow's UI on the same host, and Airflow's cookie is valid here.
"""

from __future__ import annotations

import re
from contextlib import suppress

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import TOKEN_COOKIE, AirflowApi
from stream_server.auth.authorizer import Caller
from stream_server.auth.revalidation import is_credential_refused
from stream_server.errors import AirflowNotResponding, AirflowRefused, BadRequest, PermissionUnknown
from stream_server.http.caller import airflow_api_for, identify_caller, refuse_foreign_origin
from stream_server.http.params import public_path, read_body
from stream_server.http.state import State
from stream_server.protocol.bodies import Session
from stream_server.protocol.schema import INVALID_JSON

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
"""Syntax of a bearer token (RFC 6750 section 2.1), limited to what fits into a cookie."""


class SignIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either `username` and `password`, or `token`."""

    username: str | None = None
    password: str | None = None
    token: str | None = None


async def get_session(request: Request) -> Response:
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    session = Session(
        signed_in=await _is_signed_in(state, caller),
        airflow_ui_url=state["settings"].airflow_ui_url,
        can_sign_in=state["airflow"] is not None,
    )
    return Response(msgspec.json.encode(session), media_type="application/json", headers={"Cache-Control": "no-store"})


async def _is_signed_in(state: State, caller: Caller) -> bool:
    """Whether the caller has a credential that Airflow accepts, or has not refused: it may not answer."""
    if caller.is_anonymous or not state["authorizer"].requires_credential:
        return False
    try:
        await state["authorizer"].check_dags(caller)
    except AirflowRefused as error:
        return not is_credential_refused(error)
    except PermissionUnknown:
        pass
    return True


async def sign_in(request: Request) -> Response:
    # Otherwise a page of another origin could sign its visitor in with another account (login CSRF).
    refuse_foreign_origin(request)
    credentials = _parse_credentials(request, await read_body(request))
    airflow = airflow_api_for(request, Caller())
    return _cookie_response(request, await _obtain_token(airflow, credentials))


async def sign_out(request: Request) -> Response:
    refuse_foreign_origin(request)
    airflow = airflow_api_for(request, await identify_caller(request))
    # The response deletes the cookie even if Airflow does not respond.
    with suppress(AirflowNotResponding):
        await airflow.logout()
    return _cookie_response(request, "")


def _parse_credentials(request: Request, body: bytes) -> SignIn:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequest("Content-Type must be application/json")
    try:
        credentials = msgspec.json.decode(body, type=SignIn)
    except INVALID_JSON:
        # The decoder's message could contain the password.
        raise BadRequest('The body must be {"username": …, "password": …} or {"token": …}') from None
    if (credentials.token is None) == (credentials.username is None or credentials.password is None):
        raise BadRequest('The body must be {"username": …, "password": …} or {"token": …}')
    return credentials


async def _obtain_token(airflow: AirflowApi, credentials: SignIn) -> str:
    if credentials.username is not None and credentials.password is not None:
        token = await airflow.login(credentials.username, credentials.password)
    else:
        token = (credentials.token or "").strip()
    if not _TOKEN.fullmatch(token):
        raise BadRequest("`token` must have 1 to 4096 characters, of A-Z a-z 0-9 . _ ~ + / = -")
    # Otherwise the pages would show errors in place of the sign-in form.
    await airflow.with_token(token).check_credential()
    return token


def _cookie_response(request: Request, token: str) -> Response:
    response = Response(status_code=204, headers={"Cache-Control": "no-store"})
    secure = request.scope["scheme"] == "https"
    # As Airflow's login (`airflow.api_fastapi.app.get_cookie_path`). Another path would make a second cookie.
    path = public_path(request, "/")
    if token:
        response.set_cookie(TOKEN_COOKIE, token, path=path, secure=secure, httponly=True, samesite="lax")
    else:
        response.delete_cookie(TOKEN_COOKIE, path=path, secure=secure, httponly=True, samesite="lax")
    return response

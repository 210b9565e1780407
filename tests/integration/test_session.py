"""`/api/v2/stream/session`: signing in to Airflow from the web pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.settings import Settings
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import COOKIES
from support.openapi_validation import response_errors
from support.server import RunningServer, running_server

SESSION = "/api/v2/stream/session"


async def request_session(server: RunningServer, method: str, **what: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.request(method, SESSION, **what)
    assert response_errors(answer, SESSION) == []
    return answer


@pytest.mark.parametrize("body", [{"username": "ada", "password": "right"}, {"token": " head.payload.signature\n"}])
async def test_signing_in_sets_the_cookie_of_airflow(trigger_server: RunningServer, body: dict[str, str]) -> None:
    answer = await request_session(trigger_server, "POST", json=body)
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("_token=head.payload.signature;")
    assert {part.strip() for part in cookie.split(";")} >= {"HttpOnly", "Path=/", "SameSite=lax"}


async def test_a_wrong_password_returns_the_message_of_airflow(trigger_server: RunningServer) -> None:
    answer = await request_session(trigger_server, "POST", json={"username": "ada", "password": "wrong"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert answer.json()["detail"].endswith("Invalid credentials")
    assert "wrong" not in answer.text


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "ada"}, {"token": "a;b"}, {"token": "a\r\nSet-Cookie: b=c"}, {"token": ""}, {"name": "ada"}, []],
)
async def test_an_invalid_body_is_rejected(trigger_server: RunningServer, stub: AirflowStub, body: Any) -> None:
    answer = await request_session(trigger_server, "POST", json=body)
    assert (answer.status_code, "set-cookie" in answer.headers) == (422, False)
    assert stub.received == []


@pytest.mark.parametrize("origin", ["https://elsewhere.example.com", "null", "http://[", "http://a:99999999"])
async def test_a_page_of_another_origin_cannot_sign_in_or_out(
    trigger_server: RunningServer, stub: AirflowStub, origin: str
) -> None:
    foreign = {"Origin": origin}
    body = {"username": "ada", "password": "right"}
    plain = {**foreign, "Content-Type": "text/plain"}
    for answer in (
        await request_session(trigger_server, "POST", json=body, headers=foreign),
        await request_session(trigger_server, "POST", json=body, headers=plain),
        await request_session(trigger_server, "DELETE", headers=foreign),
    ):
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert stub.received == []


async def test_a_form_cannot_sign_in(trigger_server: RunningServer) -> None:
    assert (
        await request_session(trigger_server, "POST", data={"username": "ada", "password": "right"})
    ).status_code == 422


async def test_signing_out_deletes_cookie_and_token(trigger_server: RunningServer, stub: AirflowStub) -> None:
    answer = await request_session(trigger_server, "DELETE", headers={"Cookie": COOKIES})
    assert answer.status_code == 204
    assert answer.headers["set-cookie"].startswith('_token="";')
    (logout,) = stub.received
    assert (logout.method, logout.target, logout.headers["cookie"]) == ("GET", "/api/v2/auth/logout", COOKIES)


async def test_the_session_shows_whether_signing_in_is_possible(
    settings: Callable[..., Settings], stub: AirflowStub
) -> None:
    known = {"airflow_ui_url": None, "can_sign_in": True}
    for auth, has_auth in (("airflow", True), ("none", False)):
        async with running_server(settings(airflow_url=stub.url, auth=auth)) as server:
            assert (await request_session(server, "GET")).json() == {"signed_in": False, **known}
            session = (await request_session(server, "GET", headers={"Cookie": COOKIES})).json()
            assert session == {"signed_in": has_auth, **known}


async def test_signing_in_needs_airflow(server: RunningServer) -> None:
    assert (await request_session(server, "GET")).json()["can_sign_in"] is False
    assert (await request_session(server, "POST", json={"token": "a"})).status_code == 501


INVALID_TOKEN = {"detail": "Invalid JWT token"}
FORBIDDEN = {"detail": "Forbidden"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (JSONResponse(INVALID_TOKEN, 403), 401),
        (JSONResponse({"detail": "Not authenticated"}, 401), 401),
        (JSONResponse({"detail": "down"}, 500), 502),
        (JSONResponse({"dag_runs": None}), 502),
        (JSONResponse(FORBIDDEN, 403), 204),
    ],
)
async def test_a_session_is_made_for_a_token_that_airflow_accepts(
    trigger_server: RunningServer, stub: AirflowStub, answer: Response, status: int
) -> None:
    stub.instead = lambda _: _return(answer)
    refused = await request_session(trigger_server, "POST", json={"token": "abc"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (status, status == 204)
    assert stub.received[0].headers["authorization"] == "Bearer abc"


async def test_a_cookie_that_airflow_refuses_is_no_session(
    settings: Callable[..., Settings], stub: AirflowStub
) -> None:
    async with running_server(settings(airflow_url=stub.url, auth="airflow", auth_cache="100ms")) as server:
        for answer, signed_in in ((INVALID_TOKEN, False), (FORBIDDEN, True)):
            stub.instead = lambda _, answer=answer: _return(JSONResponse(answer, 403))
            headers = {"Cookie": f"_token=a{len(answer['detail'])}"}
            session = await request_session(server, "GET", headers=headers)
            assert session.json()["signed_in"] is signed_in
            async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
                runs = await client.get("/api/v2/stream/runs")
            # The pages show the sign-in form after a 401.
            assert runs.status_code == (403 if signed_in else 401)
            assert runs.json()["detail"] == answer["detail"]


async def _return(response: Response) -> Response:
    return response

"""Signing in to Airflow from a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from stream_server.settings import Settings
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import COOKIES
from support.openapi_validation import response_errors
from support.server import RunningServer, running_server

SESSION = "/api/v2/stream/session"


async def ask(server: RunningServer, method: str, **what: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.request(method, SESSION, **what)
    assert response_errors(answer, SESSION) == []
    return answer


@pytest.mark.parametrize("who", [{"username": "ada", "password": "right"}, {"token": " head.payload.signature\n"}])
async def test_who_signs_in_gets_the_cookie_of_airflow(trigger_server: RunningServer, who: dict[str, str]) -> None:
    answer = await ask(trigger_server, "POST", json=who)
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("_token=head.payload.signature;")
    assert {part.strip() for part in cookie.split(";")} >= {"HttpOnly", "Path=/", "SameSite=lax"}


async def test_a_wrong_password_is_told_in_words_of_airflow(trigger_server: RunningServer) -> None:
    answer = await ask(trigger_server, "POST", json={"username": "ada", "password": "wrong"})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert answer.json()["detail"].endswith("Invalid credentials")
    assert "wrong" not in answer.text


@pytest.mark.parametrize(
    "who",
    [{}, {"username": "ada"}, {"token": "a;b"}, {"token": "a\r\nSet-Cookie: b=c"}, {"token": ""}, {"name": "ada"}, []],
)
async def test_what_says_nobody_is_refused(trigger_server: RunningServer, stub: AirflowStub, who: Any) -> None:
    answer = await ask(trigger_server, "POST", json=who)
    assert (answer.status_code, "set-cookie" in answer.headers) == (422, False)
    assert stub.asked == []


@pytest.mark.parametrize("origin", ["https://elsewhere.example.com", "null", "http://[", "http://a:99999999"])
async def test_a_page_of_another_origin_signs_nobody_in_or_out(
    trigger_server: RunningServer, stub: AirflowStub, origin: str
) -> None:
    foreign = {"Origin": origin}
    who = {"username": "ada", "password": "right"}
    plain = {**foreign, "Content-Type": "text/plain"}
    for answer in (
        await ask(trigger_server, "POST", json=who, headers=foreign),
        await ask(trigger_server, "POST", json=who, headers=plain),
        await ask(trigger_server, "DELETE", headers=foreign),
    ):
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert stub.asked == []


async def test_a_form_signs_nobody_in(trigger_server: RunningServer) -> None:
    assert (await ask(trigger_server, "POST", data={"username": "ada", "password": "right"})).status_code == 422


async def test_who_signs_out_loses_cookie_and_token(trigger_server: RunningServer, stub: AirflowStub) -> None:
    answer = await ask(trigger_server, "DELETE", headers={"Cookie": COOKIES})
    assert answer.status_code == 204
    assert answer.headers["set-cookie"].startswith('_token="";')
    (told,) = stub.asked
    assert (told.method, told.target, told.headers["cookie"]) == ("GET", "/api/v2/auth/logout", COOKIES)


async def test_a_page_learns_how_to_sign_in(settings: Callable[..., Settings], stub: AirflowStub) -> None:
    known = {"airflow_ui_url": None, "can_sign_in": True}
    for auth, asks_who in (("airflow", True), ("none", False)):
        async with running_server(settings(airflow_url=stub.url, auth=auth)) as server:
            assert (await ask(server, "GET")).json() == {"signed_in": False, **known}
            told = (await ask(server, "GET", headers={"Cookie": COOKIES})).json()
            assert told == {"signed_in": asks_who, **known}


async def test_without_airflow_nobody_can_sign_in(server: RunningServer) -> None:
    assert (await ask(server, "GET")).json()["can_sign_in"] is False
    assert (await ask(server, "POST", json={"token": "a"})).status_code == 501

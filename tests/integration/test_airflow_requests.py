"""Requests to Airflow: by which way they go, and with which credential."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.settings import Settings
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import RUNS, WAIT
from support.server import running_server
from support.streams import sse
from support.waiting import eventually_async

NOWHERE = "http://127.0.0.1:9"


async def _read_runs(configured: Settings) -> int:
    async with running_server(configured) as server, httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
        await eventually_async(lambda: server.hub.is_live)
        return (await client.get("/api/v2/stream/runs", headers={"Authorization": "Bearer a"})).status_code


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_a_proxy_of_the_environment_is_not_used(
    settings: Callable[..., Settings], stub: AirflowStub, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, NOWHERE)
    assert await _read_runs(settings(airflow_url=stub.url)) == 200
    assert await _read_runs(settings(airflow_url=stub.url, airflow_proxy="environment")) == 503
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert await _read_runs(settings(airflow_url=stub.url, airflow_proxy="environment")) == 200


async def test_a_proxy_of_the_settings_is_used(settings: Callable[..., Settings], stub: AirflowStub) -> None:
    assert await _read_runs(settings(airflow_url=stub.url, airflow_proxy=NOWHERE)) == 503


class RenewingAirflow:
    """Renews the token of a cookie with each request, as `JWTRefreshMiddleware` of Airflow 3.1 and later may do.

    A token of a cookie is good once. Bearer tokens are not renewed.
    """

    def __init__(self) -> None:
        self.valid = "token1"
        self.renewals = 0

    async def __call__(self, request: ReceivedRequest) -> Response | None:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        cookies = dict(part.strip().partition("=")[::2] for part in request.headers.get("cookie", "").split(";"))
        if (bearer or cookies.get("_token")) != self.valid:
            return JSONResponse({"detail": "Invalid JWT token"}, 403)
        if "_token" in cookies:
            self.renewals += 1
            self.valid = f"token{self.renewals + 1}"
        return None


@pytest.mark.parametrize("cookie", ["_token=token1", "a=b; _token=token1; session=c", '_token=stale; _token="token1"'])
async def test_requests_for_a_browser_do_not_renew_its_session(
    settings: Callable[..., Settings], stub: AirflowStub, key: RunKey, cookie: str
) -> None:
    stub.instead = airflow = RenewingAirflow()
    headers = {"Cookie": cookie}
    async with (
        running_server(settings(airflow_url=stub.url, auth_cache="100ms")) as server,
        httpx.AsyncClient(base_url=server.url, headers=headers, timeout=15) as client,
    ):
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, key, headers=headers) as events:
            assert (await events.next())["type"] == "snapshot"
            count = len(stub.received)
            await eventually_async(lambda: len(stub.received) > count + 2, what="the permission is checked again")
            answers = await asyncio.gather(
                client.post(f"{WAIT}&timeout=0", json={}), client.post(RUNS, json={}), client.get("/api/v2/stream/runs")
            )
        assert [answer.status_code for answer in answers] == [202, 200, 200]
    assert airflow.renewals == 0
    others = {request.headers.get("cookie") for request in stub.received}
    assert others == ({"a=b; session=c"} if "session" in cookie else {None})
    assert all("set-cookie" not in answer.headers for answer in answers)

"""A client of Airflow's REST API, with the credential of one caller."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
from starlette.requests import cookie_parser

from stream_server.auth.airflow_bodies import (
    AnswerBody,
    InstancePage,
    RequestBody,
    RunBody,
    RunPage,
    RunStateBody,
    TokenBody,
)
from stream_server.domain.human_input import RequestKey
from stream_server.domain.run_state import FINAL_RUN_STATES, RunKey
from stream_server.errors import AirflowNotResponding, AirflowRefused, AirflowTimeout, UrlTooLong
from stream_server.settings import ENVIRONMENT
from stream_server.urls import redact_url

TIMEOUT_SECONDS = 30.0

MAX_FAIL_ATTEMPTS = 4
"""How often a run is set to failed while Airflow answers with a server error."""

FAIL_PAUSE_SECONDS = (0.1, 0.5)
"""Bounds of the random pause between two attempts."""

MAYBE_CREATED = "; the run may have been created all the same"
"""Added to an error if a request to trigger a run had no answer."""

MAYBE_ANSWERED = "; the request may have been answered all the same"
"""The same for an answer to a request for human input."""

BAD_REQUEST, UNAUTHENTICATED, FORBIDDEN, NOT_FOUND, UNPROCESSABLE = 400, 401, 403, 404, 422

INVALID_TOKEN_DETAIL = "Invalid JWT token"  # noqa: S105 # what Airflow answers, and no token
"""Detail of the 403 with which Airflow answers a revoked, expired or malformed token (`core_api.security`)."""

EMPTY_RUN_LIST = "/api/v2/dags/~/dagRuns?limit=1&run_after_gte=9999-12-31T00:00:00Z"
"""Path of the runs that match an impossible time: only the permission matters."""

TOKEN_COOKIE = "_token"  # noqa: S105 # a name
"""Cookie of Airflow's login (`airflow.api_fastapi.auth.managers.base_auth_manager.COOKIE_NAME_JWT_TOKEN`)."""

BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750 section 2.1."""


_Body = TypeVar("_Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class AirflowAnswer(Generic[_Body]):
    """An answer of Airflow, whatever its status."""

    status: int
    body: _Body | None
    """`None` for every status but 200."""

    detail: str
    """The `detail` of an error."""

    challenge: str | None
    """Its `WWW-Authenticate`."""


class AirflowApi:
    """Airflow's REST API (`/api/v2`), for one caller.

    Args:
        client: An open client whose base URL is Airflow's.
        credentials: The caller's headers: `Authorization`, or the whole `Cookie`.
    """

    def __init__(self, client: httpx.AsyncClient, credentials: Mapping[str, str]) -> None:
        self._client = client
        self._credentials = dict(credentials)

    @property
    def _bearer(self) -> dict[str, str]:
        return prefer_bearer(self._credentials)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, token: str | None) -> AsyncIterator[AirflowApi]:
        """Open a client of the Airflow at `url`, the address of its API server without a path of the API."""
        async with create_shared_client(url, TIMEOUT_SECONDS) as client:
            yield cls(client, {} if token is None else {"Authorization": f"Bearer {token}"})

    def with_token(self, token: str) -> AirflowApi:
        """Return the same client for the caller with a bearer token."""
        return AirflowApi(self._client, {"Authorization": f"Bearer {token}"})

    async def login(self, username: str, password: str) -> str:
        """Return a token for a user's name and password, and use it from now on (`POST /auth/token`).

        Raises:
            AirflowError: Airflow refuses them, or does not answer.
        """
        answer = await self._request_body(
            TokenBody, "POST", "/auth/token", {"username": username, "password": password}
        )
        self._credentials["Authorization"] = f"Bearer {answer.access_token}"
        return answer.access_token

    async def logout(self) -> None:
        """Revoke the caller's token, if Airflow can (`GET /api/v2/auth/logout`, 3.2 and later).

        Raises:
            AirflowNotResponding: There was no answer.
        """
        await self._send("GET", "/api/v2/auth/logout", "", headers=self._credentials)

    async def trigger_run(self, dag_id: str, body: Mapping[str, Any]) -> RunKey:
        """Trigger a DAG and return its run (`POST /api/v2/dags/{dag_id}/dagRuns`).

        Args:
            dag_id: The DAG.
            body: The body of Airflow's endpoint. `logical_date` may be left out.

        Raises:
            AirflowRefused: Airflow refuses.
            AirflowNotResponding: There was no usable answer. The run may have been created.
        """
        path = f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns"
        body = {"logical_date": None, **body}
        run = await self._request_body(RunBody, "POST", path, body, doubt=MAYBE_CREATED)
        return RunKey(dag_id, run.dag_run_id)

    async def fail_run(self, key: RunKey) -> str:
        """Set a run to failed, and return its state then (`PATCH /api/v2/dags/{dag_id}/dagRuns/{dag_run_id}`).

        Airflow stops its tasks; teardown tasks still run, and the run is not failed before they have ended. A run that
        has ended is not changed: Airflow would turn a success into a failure. A server error is retried: if the
        scheduler changes the run at the same moment, the two transactions can deadlock, and Airflow answers 500 when
        PostgreSQL has rolled one of them back.

        Raises:
            AirflowError: Airflow refuses, or does not answer.
        """
        path = f"{run_path(key)}?update_mask=state"
        for pauses_left in reversed(range(MAX_FAIL_ATTEMPTS)):
            run = await self._request_body(RunStateBody, "GET", run_path(key))
            if run.state in FINAL_RUN_STATES:
                return run.state
            response = await self._send("PATCH", path, "", json={"state": "failed"}, headers=self._bearer)
            if not response.is_server_error or not pauses_left:
                break
            await asyncio.sleep(random.uniform(*FAIL_PAUSE_SECONDS))  # noqa: S311 # not for secrets
        return _read_body(RunStateBody, response, "PATCH", path).state

    async def answer_request(self, key: RunKey, instance: RequestKey, answer: Mapping[str, Any]) -> AnswerBody:
        """Answer the request for human input of a task instance (`PATCH …/hitlDetails`), and return the answer.

        Raises:
            AirflowRefused: Airflow refuses: with 409 if the request is not open any more, with 422 if the answer does
                not fit it, with 404 if there is no such task instance.
            AirflowNotResponding: There was no usable answer. The request may have been answered.
        """
        task_id, map_index, iteration = instance
        path = f"{run_path(key)}/taskInstances/{quote(task_id, safe='')}/{map_index}/hitlDetails"
        if iteration is not None:
            path = f"{path}?{await self._find_region(key, task_id, map_index, iteration)}"
        await self._check_answer(path, answer)
        try:
            return await self._request_body(AnswerBody, "PATCH", path, answer, doubt=MAYBE_ANSWERED)
        except AirflowRefused as error:
            if error.status != BAD_REQUEST:
                raise
            raise AirflowRefused(str(error), UNPROCESSABLE) from None

    async def _check_answer(self, path: str, answer: Mapping[str, Any]) -> None:
        """Refuse an answer that Airflow would accept, and that would fail the task or is for an earlier request.

        Airflow checks the options from 3.3 on, the time of the request from 3.4 on, and the names of fields never.

        Raises:
            AirflowRefused: As for `answer_request`. If the caller can't read the request, Airflow decides alone.
        """
        request = (await self.get(RequestBody, path, TIMEOUT_SECONDS)).body
        if request is None or request.response_received:
            return
        asked_at = answer.get("request_created_at")
        if asked_at is not None and request.is_other_than(asked_at):
            raise AirflowRefused(f"The task has asked again since {asked_at}, at {request.created_at.isoformat()}", 409)
        if misfit := request.find_misfit(answer["chosen_options"], answer["params_input"]):
            raise AirflowRefused(misfit, UNPROCESSABLE)

    async def _find_region(self, key: RunKey, task_id: str, map_index: int, iteration: int) -> str:
        """Return the query by which Airflow 3.4 names the instance of a task in an iteration of a loop."""
        # The newest iterations come first, since a request is usually of one of them.
        query = urlencode({"task_id": task_id, "map_index": map_index, "limit": 100, "order_by": "-start_date"})
        page = await self._request_body(InstancePage, "GET", f"{run_path(key)}/taskInstances?{query}")
        for instance in page.task_instances:
            if instance.loop_iteration is not None and instance.loop_iteration.iteration == iteration:
                return urlencode({"region_id": instance.region_id, "region_index": instance.region_index})
        raise AirflowRefused(
            f"Run {key.run_id!r} has no instance of task {task_id!r} in iteration {iteration} of a task loop", NOT_FOUND
        )

    async def get(self, shape: type[_Body], path: str, timeout: float) -> AirflowAnswer[_Body]:
        """Request something. A refusal is returned, not raised.

        Args:
            shape: What the body of a 200 must be.
            path: What is requested.
            timeout: Seconds for each step of the request.

        Raises:
            AirflowRefused: The credential can't be sent (400).
            UrlTooLong: The path can't be sent.
            AirflowNotResponding: There was no answer, or a 200 with another body.
        """
        response = await self._send("GET", path, "", headers=self._bearer, timeout=timeout)
        if response.status_code == httpx.codes.OK:
            return AirflowAnswer(response.status_code, _read_body(shape, response, "GET", path), "", None)
        detail = _read_detail(response)
        status = _refusal_status(response.status_code, detail)
        return AirflowAnswer(status, None, detail, _find_challenge(response, status))

    async def check_credential(self) -> None:
        """Raise unless Airflow accepts the caller's credential, whatever the caller may do.

        Raises:
            AirflowRefused: Airflow does not accept it (401).
            AirflowNotResponding: There was no usable answer.
        """
        answer = await self.get(RunPage, EMPTY_RUN_LIST, TIMEOUT_SECONDS)
        if answer.status == UNAUTHENTICATED:
            raise AirflowRefused(f"Airflow does not accept this token: {answer.detail}", answer.status)
        if answer.body is None and answer.status != FORBIDDEN:
            raise AirflowNotResponding(f"Airflow answered {answer.status} to the request whether the token is valid")

    async def forward(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """Forward a request, and return Airflow's answer unchanged.

        Raises:
            AirflowNotResponding: There was no answer.
        """
        return await self._send(method, path, MAYBE_CREATED, content=body, headers={**headers, **self._bearer})

    async def _request_body(
        self, shape: type[_Body], method: str, path: str, body: Mapping[str, Any] | None = None, *, doubt: str = ""
    ) -> _Body:
        """Send a request, and return the body of the answer. `doubt` is added to the error if there is none."""
        response = await self._send(method, path, doubt, json=body, headers=self._bearer)
        return _read_body(shape, response, method, path, doubt)

    async def _send(
        self,
        method: str,
        path: str,
        doubt: str,
        headers: Mapping[str, str],
        **what: Any,  # noqa: ANN401
    ) -> httpx.Response:
        address = redact_url(str(self._client.base_url))
        # As the client sent them: a header value is octets, which need not be text (RFC 9110 section 5.5).
        octets = {name.encode(): value.encode("latin-1", "surrogateescape") for name, value in headers.items()}
        try:
            return await self._request(method, path, headers=octets, **what)
        except httpx.LocalProtocolError:
            # Its text contains the credential, and a cause is logged too.
            raise AirflowRefused("A credential header contains characters that no header may contain", 400) from None
        except httpx.InvalidURL as error:
            # The paths here contain names of callers, quoted. So they can only be too long.
            raise UrlTooLong(f"The DAG or run id is too long for a request to Airflow ({error})") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise AirflowNotResponding(f"Airflow does not answer at {address} ({_describe_error(error)})") from error
        except httpx.TimeoutException as error:
            raise AirflowTimeout(f"Airflow at {address} did not answer in time{doubt}") from error
        except httpx.HTTPError as error:
            raise AirflowNotResponding(
                f"The request to Airflow at {address} failed ({_describe_error(error)}){doubt}"
            ) from error

    async def _request(self, method: str, path: str, **what: Any) -> httpx.Response:  # noqa: ANN401
        try:
            return await self._client.request(method, path, **what)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
            # An idle connection may be closed just as it is used again. RFC 9110 section 9.2.2 permits to repeat what
            # is idempotent.
            if method != "GET":
                raise
            return await self._client.request(method, path, **what)


def _read_body(shape: type[_Body], response: httpx.Response, method: str, path: str, doubt: str = "") -> _Body:
    """Return the body of an answer in a given shape.

    Raises:
        AirflowRefused: Airflow did not do what it was asked for.
        AirflowNotResponding: It has a fault, or the body has another shape: perhaps something else has answered.
    """
    what = f"Airflow answered {response.status_code} to {method} {path.partition('?')[0]}"
    if response.is_success:
        try:
            return msgspec.convert(response.json(), shape)
        except msgspec.ValidationError as error:
            # The body itself is not quoted: it may contain a token.
            raise AirflowNotResponding(f"{what} with JSON of another shape than its API has: {error}{doubt}") from error
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "no content type")[:100]
            raise AirflowNotResponding(f"{what} with a body that can't be read as JSON ({kind}){doubt}") from error
    detail = _read_detail(response)
    what = f"{what}: {detail}"
    if response.is_client_error:
        status = _refusal_status(response.status_code, detail)
        raise AirflowRefused(what, status, challenge=_find_challenge(response, status))
    raise AirflowNotResponding(f"{what}{doubt}")


def create_shared_client(url: str, timeout: float, proxy: str | None = ENVIRONMENT) -> httpx.AsyncClient:
    """Return a client that many callers can share: it keeps no cookies, so that none is sent for another caller.

    Args:
        url: Address of Airflow's API server.
        timeout: Seconds for each step of a request.
        proxy: Address of an HTTP proxy; `None` for none; `ENVIRONMENT` for that of HTTP_PROXY and such variables.
    """
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    # httpx reads variables of proxies only where no transport is given. The transport still reads SSL_CERT_FILE.
    transport = None if proxy == ENVIRONMENT else httpx.AsyncHTTPTransport(proxy=proxy)
    return httpx.AsyncClient(base_url=url, timeout=timeout, cookies=no_cookies, transport=transport)


def prefer_bearer(credentials: Mapping[str, str]) -> dict[str, str]:
    """Return credentials with the token in `Authorization`, and no longer in the cookie `_token`.

    Airflow renews the token of a cookie with each request (`JWTRefreshMiddleware`). The new one would not reach the
    browser, and the old one may be good only once.
    """
    cookie = credentials.get("cookie")
    if cookie is None or "authorization" in {name.lower() for name in credentials}:
        return dict(credentials)
    # As Airflow reads them. Of several with the same name, it takes the last.
    token = cookie_parser(cookie).get(TOKEN_COOKIE, "")
    if not BEARER_TOKEN.fullmatch(token):
        return dict(credentials)
    others = [part.strip() for part in cookie.split(";") if part.partition("=")[0].strip() != TOKEN_COOKIE]
    rest = {name: value for name, value in credentials.items() if name != "cookie"}
    return {**rest, "authorization": f"Bearer {token}", **({"cookie": "; ".join(others)} if others else {})}


def run_path(key: RunKey) -> str:
    """Return the path of a run, in Airflow's REST API and in that of this server."""
    return f"/api/v2/dags/{quote(key.dag_id, safe='')}/dagRuns/{quote(key.run_id, safe='')}"


def _describe_error(error: Exception) -> str:
    return str(error) or type(error).__name__


def _refusal_status(status: int, detail: str) -> int:
    """Return the status of a refusal: 401 where Airflow refuses the credential, and not what it is to be used for."""
    return UNAUTHENTICATED if status == FORBIDDEN and detail == INVALID_TOKEN_DETAIL else status


def _find_challenge(response: httpx.Response, status: int) -> str | None:
    """Return the `WWW-Authenticate` header for a refusal, which an answer with 401 must have (RFC 9110 15.5.2)."""
    found: str | None = response.headers.get("www-authenticate")
    return found or ("Bearer" if status == UNAUTHENTICATED else None)


class _ErrorBody(msgspec.Struct):
    detail: Any


def _read_detail(response: httpx.Response) -> str:
    """Return the `detail` of an error, or the start of the body."""
    try:
        detail = msgspec.json.decode(response.content, type=_ErrorBody).detail
    except (ValueError, RecursionError):
        detail = None
    if isinstance(detail, str):
        return detail
    return (response.text if detail is None else json.dumps(detail, ensure_ascii=False))[:500]

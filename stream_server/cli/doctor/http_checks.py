"""Checks of what answers over HTTP: Airflow's API, the server, and what is in front of it."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, NamedTuple

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from stream_server.cli.doctor.report import Finding, ok, problem, warning
from stream_server.http.endpoints.probe import PING_COUNT, PING_INTERVAL, PROBE_PATH
from stream_server.urls import redact_url

ACCEPTED_ENCODINGS = "gzip, deflate, br, zstd"
"""What browsers accept, so that a proxy that compresses does so here as well."""

OLDEST_AIRFLOW, NEWEST_AIRFLOW = (3, 0), (3, 3)

_NUMBER = re.compile("[0-9]{1,9}")

BUFFERING_REMEDY = (
    "have the proxy pass on what comes at once (nginx: proxy_buffering off, or heed X-Accel-Buffering; Apache:"
    " flushpackets=on; CDN: no buffering or transformation of text/event-stream)"
)
COMPRESSION_REMEDY = "have the proxy leave text/event-stream uncompressed, as Cache-Control: no-transform asks"
UPGRADE_REMEDY = (
    'pass on the upgrade (nginx: proxy_http_version 1.1, proxy_set_header Upgrade $http_upgrade, Connection "upgrade")'
)
URL_REMEDY = "give --url the address at which clients reach stream_server, without a path of its API"


class AirflowChecks:
    """Checks of Airflow's REST API.

    Args:
        client: An open client whose base URL is Airflow's address.
        token: Bearer token to be tried; `None` to try none.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._token = token

    async def check_api(self) -> Finding:
        """Tell whether Airflow's API answers, and which version it is."""
        where = redact_url(str(self._client.base_url)).rstrip("/")
        remedy = "give --airflow-url the address of Airflow's API server, as its [api] base_url"
        began = time.perf_counter()
        answer = await _get_or_error(self._client, "/api/v2/version")
        milliseconds = (time.perf_counter() - began) * 1000
        if isinstance(answer, str):
            return problem(f"nothing answers at {where} ({answer})", remedy, answers=False)
        version = _json_member(answer, "version")
        if not answer.is_success or version is None:
            return problem(
                f"what answers at {where} is not Airflow's API (status {answer.status_code})", remedy, answers=False
            )
        found = f"Airflow {version} at {where}, in {milliseconds:.0f} ms"
        facts = {"version": version, "milliseconds": milliseconds}
        if not OLDEST_AIRFLOW <= release_of(version) <= NEWEST_AIRFLOW:
            return warning(found, "stream_server is made for Airflow 3.0 to 3.3", **facts)
        return ok(found, **facts)

    async def check_token(self) -> Finding:
        """Tell whether Airflow accepts the token."""
        answer = await _get_or_error(self._client, "/api/v2/dags?limit=1", Authorization=f"Bearer {self._token}")
        if isinstance(answer, str):
            return problem(f"nothing answers ({answer})", "see the check `airflow-api`")
        detail = _json_member(answer, "detail") or ""
        facts = {"status": answer.status_code}
        if answer.is_success:
            return ok("Airflow accepts the token", **facts)
        if answer.status_code == httpx.codes.FORBIDDEN and detail == "Forbidden":
            remedy = "give its user a role that may read DAGs, runs and XComs"
            return problem("Airflow knows the token, but its user may not read DAGs", remedy, **facts)
        return problem(
            f"Airflow refuses the token with {answer.status_code} {detail}".rstrip(),
            "get a new one (POST /auth/token); all of Airflow's processes must have the same [api_auth] jwt_secret",
            **facts,
        )


class ProbeTiming(NamedTuple):
    """How the probe came through."""

    status: int
    headers: httpx.Headers
    headers_after: float
    """Seconds until the headers came."""

    pings_after: list[float]
    """Seconds until each ping came."""


class ServerChecks:
    """Checks of stream_server, through all that is in front of it.

    Args:
        client: An open client whose base URL is the server's address.
        token: Bearer token to be sent along; `None` for none.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def check_server(self) -> Finding:
        """Tell whether a stream_server answers, and whether its streams are whole and live."""
        where = redact_url(str(self._client.base_url)).rstrip("/")
        health = await _get_or_error(self._client, "/health", **self._headers)
        if isinstance(health, str):
            return problem(
                f"nothing answers at {where} ({health})", f"start `stream-server serve`, or {URL_REMEDY}", answers=False
            )
        ready = await _get_or_error(self._client, "/ready", **self._headers)
        if isinstance(ready, str) or _json_member(health, "status") != "ok" or _json_member(ready, "status") is None:
            return problem(
                f"what answers at {where} is not stream_server (status {health.status_code})", URL_REMEDY, answers=False
            )
        problems = ready.json().get("problems", [])
        facts = {"status": ready.status_code, "problems": problems}
        if not ready.is_success:
            return problem(
                f"stream_server at {where} is not ready: {'; '.join(map(str, problems))}",
                "see the checks of the database, made with the server's own URL, and the server's log",
                **facts,
            )
        if not ready.json().get("tail", {}).get("doorbell", True):
            remedy = "give the server a URL that leads to the primary itself, not to a pooler or a replica"
            return warning(f"stream_server at {where} is ready, but hears no doorbell and polls", remedy, **facts)
        if warnings := ready.json().get("warnings"):
            found = f"stream_server at {where} is ready, but warns: {'; '.join(map(str, warnings))}"
            return warning(found, "see docs/operations.md", **facts)
        return ok(f"stream_server at {where} is ready", **facts)

    async def check_buffering(self) -> Finding:
        """Tell whether a stream comes through as it is sent."""
        arrival = await self._run_probe()
        if not isinstance(arrival, str) and is_buffered(arrival):
            # Once more: a moment in which this host was busy looks the same.
            arrival = await self._run_probe()
        if isinstance(arrival, str):
            return problem(f"the stream broke off ({arrival})", "see the logs of the server and of the proxy in front")
        return evaluate_probe(arrival)

    async def check_websocket(self) -> Finding:
        """Tell whether a WebSocket comes through."""
        address = str(self._client.base_url).rstrip("/").replace("http", "ws", 1) + PROBE_PATH
        try:
            async with connect(address, additional_headers=self._headers, open_timeout=self._timeout()) as connection:
                frames = [frame async for frame in connection]
        except InvalidHandshake as error:
            return problem(f"no WebSocket is opened ({error})", UPGRADE_REMEDY)
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            return problem(f"the WebSocket broke off ({_describe_error(error)})", UPGRADE_REMEDY)
        return ok(f"{len(frames)} frames came through", frames=len(frames))

    async def _run_probe(self) -> ProbeTiming | str:
        headers = {**self._headers, "Accept": "text/event-stream", "Accept-Encoding": ACCEPTED_ENCODINGS}
        began = time.perf_counter()
        pings: list[float] = []
        try:
            async with self._client.stream("GET", PROBE_PATH, headers=headers) as response:
                begun = time.perf_counter() - began
                async for part in response.aiter_bytes():
                    pings += [time.perf_counter() - began] * part.count(b"event: ping")
        except httpx.HTTPError as error:
            return _describe_error(error)
        return ProbeTiming(response.status_code, response.headers, begun, pings)

    def _timeout(self) -> float | None:
        return self._client.timeout.connect


def is_buffered(arrival: ProbeTiming) -> bool:
    """Tell whether pings that were sent one by one came all at once, or nearly so."""
    return (
        len(arrival.pings_after) == PING_COUNT
        and arrival.pings_after[-1] - arrival.pings_after[0] < (PING_COUNT - 1) * PING_INTERVAL / 2
    )


def evaluate_probe(arrival: ProbeTiming) -> Finding:
    """Judge how the probe came through."""
    headers = arrival.headers
    if len(arrival.pings_after) != PING_COUNT:
        return warning(
            f"whether streams are buffered can't be told: {PROBE_PATH} is answered with status {arrival.status} and"
            f" {len(arrival.pings_after)} of {PING_COUNT} pings",
            "have the proxy lead /api/v2/stream to stream_server as well",
            status=arrival.status,
        )
    encoding = headers.get("content-encoding")
    gaps = [
        round((after - before) * 1000)
        for before, after in zip(arrival.pings_after, arrival.pings_after[1:], strict=False)
    ]
    facts: dict[str, Any] = {
        "headers_ms": arrival.headers_after * 1000,
        "first_ms": arrival.pings_after[0] * 1000,
        "gaps_ms": gaps,
        "content_encoding": encoding,
        "x_accel_buffering": headers.get("x-accel-buffering"),
        "cache_control": headers.get("cache-control"),
        "via": headers.get("via") or headers.get("server"),
    }
    by = f" ({facts['via']})" if facts["via"] else ""
    times = f"the first frame came after {facts['first_ms']:.0f} ms, the next ones {', '.join(map(str, gaps))} ms apart"
    if is_buffered(arrival):
        compressed = "" if encoding is None else f" and compressed with {encoding}"
        remedy = BUFFERING_REMEDY if encoding is None else f"{COMPRESSION_REMEDY}; {BUFFERING_REMEDY}"
        return problem(
            f"streams are buffered{compressed}{by}: {times} instead of {PING_INTERVAL * 1000:.0f}", remedy, **facts
        )
    if encoding is not None:
        return warning(f"streams are compressed with {encoding}{by}; {times}", COMPRESSION_REMEDY, **facts)
    if "no-transform" not in headers.get("cache-control", ""):
        remedy = "have the proxy leave Cache-Control as it is: another one behind it may compress and buffer"
        return warning(f"a proxy has taken Cache-Control: no-transform away{by}; {times}", remedy, **facts)
    taken = "" if facts["x_accel_buffering"] else "; a proxy has heeded X-Accel-Buffering, or taken it away"
    return ok(f"nothing buffers{taken}; {times}", **facts)


async def _get_or_error(client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response | str:
    """Return an answer, or why there is none."""
    try:
        return await client.get(path, headers=headers)
    except httpx.HTTPError as error:
        return _describe_error(error)


def _json_member(answer: httpx.Response, name: str) -> str | None:
    """Return a text that is a member of an answer; `None` where the answer is no JSON object with such a text."""
    try:
        member = answer.json()[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return member if isinstance(member, str) else None


def release_of(version: str) -> tuple[int, ...]:
    """Return the first two parts of a version, of those that are numbers of at most nine digits."""
    return tuple(int(part) for part in version.split(".")[:2] if _NUMBER.fullmatch(part))


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

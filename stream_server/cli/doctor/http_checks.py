"""Checks over HTTP: Airflow's API, stream_server, and the proxies in front of it."""

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
"""Accept-Encoding of browsers, so that a proxy that compresses does so for the check, too."""

OLDEST_AIRFLOW, NEWEST_AIRFLOW = (3, 0), (3, 4)

_NUMBER = re.compile("[0-9]{1,9}")

BUFFERING_REMEDY = (
    "disable buffering in the proxy (nginx: proxy_buffering off, or respect X-Accel-Buffering; Apache: flushpackets=on;"
    " CDN: no buffering or transformation of text/event-stream)"
)
COMPRESSION_REMEDY = "disable compression of text/event-stream in the proxy (Cache-Control: no-transform)"
UPGRADE_REMEDY = (
    'forward the upgrade (nginx: proxy_http_version 1.1, proxy_set_header Upgrade $http_upgrade, Connection "upgrade")'
)
URL_REMEDY = "set --url to the address of stream_server for clients, without a path of its API"


class AirflowChecks:
    """Checks of Airflow's REST API.

    Args:
        client: An open client with Airflow's address as its base URL.
        token: Bearer token to check; `None` for none.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._token = token

    async def check_api(self) -> Finding:
        """Check that Airflow's API responds with a supported version."""
        address = redact_url(str(self._client.base_url)).rstrip("/")
        remedy = "set --airflow-url to the address of Airflow's API server, as in its [api] base_url"
        began = time.perf_counter()
        response = await _get_or_error(self._client, "/api/v2/version")
        milliseconds = (time.perf_counter() - began) * 1000
        if isinstance(response, str):
            return problem(f"no response from {address} ({response})", remedy, answers=False)
        version = _json_member(response, "version")
        if not response.is_success or version is None:
            return problem(f"{address} is not Airflow's API (status {response.status_code})", remedy, answers=False)
        found = f"Airflow {version} at {address}, in {milliseconds:.0f} ms"
        facts = {"version": version, "milliseconds": milliseconds}
        if not OLDEST_AIRFLOW <= release_of(version) <= NEWEST_AIRFLOW:
            return warning(found, "stream_server supports Airflow 3.0 to 3.4", **facts)
        return ok(found, **facts)

    async def check_token(self) -> Finding:
        """Check that Airflow accepts the token, and that its user may read DAGs."""
        response = await _get_or_error(self._client, "/api/v2/dags?limit=1", Authorization=f"Bearer {self._token}")
        if isinstance(response, str):
            return problem(f"no response ({response})", "see the check `airflow-api`")
        detail = _json_member(response, "detail") or ""
        facts = {"status": response.status_code}
        if response.is_success:
            return ok("Airflow accepts the token", **facts)
        if response.status_code == httpx.codes.FORBIDDEN and detail == "Forbidden":
            remedy = "give the user a role that may read DAGs, runs and XComs"
            return problem("the token is valid, but its user may not read DAGs", remedy, **facts)
        return problem(
            f"Airflow rejects the token with {response.status_code} {detail}".rstrip(),
            "get a new token (POST /auth/token); all Airflow processes must have the same [api_auth] jwt_secret",
            **facts,
        )


class ProbeTiming(NamedTuple):
    """Response to the probe, and its timing."""

    status: int
    headers: httpx.Headers
    headers_after: float
    """Seconds from the request to the headers."""

    pings_after: list[float]
    """Seconds from the request to each ping."""


class ServerChecks:
    """Checks of stream_server through the proxies in front of it.

    Args:
        client: An open client with the server's address as its base URL.
        token: Bearer token to send; `None` for none.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def check_server(self) -> Finding:
        """Check that stream_server responds, and that its streams are complete and live."""
        address = redact_url(str(self._client.base_url)).rstrip("/")
        health = await _get_or_error(self._client, "/health", **self._headers)
        if isinstance(health, str):
            return problem(
                f"no response from {address} ({health})", f"start `stream-server serve`, or {URL_REMEDY}", answers=False
            )
        ready = await _get_or_error(self._client, "/ready", **self._headers)
        if isinstance(ready, str) or _json_member(health, "status") != "ok" or _json_member(ready, "status") is None:
            return problem(f"{address} is not stream_server (status {health.status_code})", URL_REMEDY, answers=False)
        problems = ready.json().get("problems", [])
        facts = {"status": ready.status_code, "problems": problems}
        if not ready.is_success:
            return problem(
                f"stream_server at {address} is not ready: {'; '.join(map(str, problems))}",
                "see the server's log, and run the database checks with the server's own URL",
                **facts,
            )
        if not ready.json().get("tail", {}).get("doorbell", True):
            remedy = "set the server's database URL to the primary itself, not to a pooler or a replica"
            return warning(
                f"stream_server at {address} is ready, but receives no notifications and polls", remedy, **facts
            )
        if warnings := ready.json().get("warnings"):
            found = f"stream_server at {address} is ready, but warns: {'; '.join(map(str, warnings))}"
            return warning(found, "see docs/operations.md", **facts)
        return ok(f"stream_server at {address} is ready", **facts)

    async def check_buffering(self) -> Finding:
        """Check that proxies forward a stream without delay."""
        timing = await self._run_probe()
        if not isinstance(timing, str) and is_buffered(timing):
            # A second attempt, because a busy moment of this host looks the same.
            timing = await self._run_probe()
        if isinstance(timing, str):
            return problem(f"the stream was interrupted ({timing})", "see the logs of the server and of the proxy")
        return evaluate_probe(timing)

    async def check_websocket(self) -> Finding:
        """Check that proxies forward a WebSocket."""
        address = str(self._client.base_url).rstrip("/").replace("http", "ws", 1) + PROBE_PATH
        try:
            async with connect(address, additional_headers=self._headers, open_timeout=self._timeout()) as connection:
                frames = [frame async for frame in connection]
        except InvalidHandshake as error:
            return problem(f"the WebSocket handshake failed ({error})", UPGRADE_REMEDY)
        except (OSError, WebSocketException, asyncio.TimeoutError) as error:
            return problem(f"the WebSocket was interrupted ({_describe_error(error)})", UPGRADE_REMEDY)
        return ok(f"received {len(frames)} frames", frames=len(frames))

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


def is_buffered(timing: ProbeTiming) -> bool:
    """Whether the pings arrived together, although the server sent them at intervals."""
    return (
        len(timing.pings_after) == PING_COUNT
        and timing.pings_after[-1] - timing.pings_after[0] < (PING_COUNT - 1) * PING_INTERVAL / 2
    )


def evaluate_probe(timing: ProbeTiming) -> Finding:
    """Return the finding about the timing of a probe."""
    headers = timing.headers
    if len(timing.pings_after) != PING_COUNT:
        return warning(
            f"buffering cannot be checked: {PROBE_PATH} returned status {timing.status} and"
            f" {len(timing.pings_after)} of {PING_COUNT} pings",
            "configure the proxy to forward /api/v2/stream to stream_server",
            status=timing.status,
        )
    encoding = headers.get("content-encoding")
    gaps = [
        round((after - before) * 1000)
        for before, after in zip(timing.pings_after, timing.pings_after[1:], strict=False)
    ]
    facts: dict[str, Any] = {
        "headers_ms": timing.headers_after * 1000,
        "first_ms": timing.pings_after[0] * 1000,
        "gaps_ms": gaps,
        "content_encoding": encoding,
        "x_accel_buffering": headers.get("x-accel-buffering"),
        "cache_control": headers.get("cache-control"),
        "via": headers.get("via") or headers.get("server"),
    }
    by = f" ({facts['via']})" if facts["via"] else ""
    times = f"the first frame after {facts['first_ms']:.0f} ms, then at intervals of {', '.join(map(str, gaps))} ms"
    if is_buffered(timing):
        compressed = "" if encoding is None else f" and compressed with {encoding}"
        remedy = BUFFERING_REMEDY if encoding is None else f"{COMPRESSION_REMEDY}; {BUFFERING_REMEDY}"
        return problem(
            f"streams are buffered{compressed}{by}: {times} instead of {PING_INTERVAL * 1000:.0f}", remedy, **facts
        )
    if encoding is not None:
        return warning(f"streams are compressed with {encoding}{by}; {times}", COMPRESSION_REMEDY, **facts)
    if "no-transform" not in headers.get("cache-control", ""):
        remedy = "configure the proxy to keep Cache-Control: without it, another proxy may compress and buffer"
        return warning(f"a proxy removed Cache-Control: no-transform{by}; {times}", remedy, **facts)
    removed = "" if facts["x_accel_buffering"] else "; a proxy used or removed X-Accel-Buffering"
    return ok(f"no buffering{removed}; {times}", **facts)


async def _get_or_error(client: httpx.AsyncClient, path: str, **headers: str) -> httpx.Response | str:
    """Return the response, or the error as text."""
    try:
        return await client.get(path, headers=headers)
    except httpx.HTTPError as error:
        return _describe_error(error)


def _json_member(response: httpx.Response, name: str) -> str | None:
    """Return a text in a JSON object; `None` if the body has no such member, or if it is not a text."""
    try:
        member = response.json()[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return member if isinstance(member, str) else None


def release_of(version: str) -> tuple[int, ...]:
    """Return the first two parts of a version, of those that are numbers of at most nine digits."""
    return tuple(int(part) for part in version.split(".")[:2] if _NUMBER.fullmatch(part))


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

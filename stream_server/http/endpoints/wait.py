"""`GET …/dagRuns/{run_id}/wait`: compatible with Airflow's endpoint (3.1 and later), but without polling the database.

Parameters, statuses, error bodies and lines are those of Airflow 3.3 (`core_api/routes/public/dag_run.py` and
`core_api/services/public/dag_run.py`, class `DagRunWaiter`), so that its clients need only another base URL. Only the
time of the lines differs: a line is sent when the state changes, and again if it does not change for a while.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from itertools import groupby
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from stream_server.auth.airflow_api import run_path
from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.run_state import FINAL_RUN_STATES, RunKey, RunState
from stream_server.domain.transition import RETURN_VALUE_KEY
from stream_server.errors import AirflowRefused, RunNotFound, Unavailable
from stream_server.http.caller import identify_caller
from stream_server.http.delivery.asgi_scope import reset_response
from stream_server.http.delivery.due_frames import watch_due_frames
from stream_server.http.delivery.scheduler import TransportCounters
from stream_server.http.delivery.streaming_body import HEADERS
from stream_server.http.params import parse_run_key
from stream_server.http.permission import authorize_run, ignore_expiry
from stream_server.http.state import State
from stream_server.hub.subscription import Subscription
from stream_server.protocol.frames import End, RunTransition, Snapshot
from stream_server.protocol.wire import Wire

log = logging.getLogger(__name__)

MIN_REPEAT_SECONDS = 1.0
"""Minimum time until an unchanged state is sent again, even if the client requests a shorter interval."""

_interval: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0.0)])


async def wait_for_run(request: Request) -> Response:
    try:
        return await _wait(request, parse_run_key(request))
    except RunNotFound as error:
        return _not_found_response(RunKey(error.dag_id, error.run_id))


async def _wait(request: Request, key: RunKey) -> Response:
    state: State = request.scope["state"]
    query, caller = request.query_params, await identify_caller(request)
    try:
        permission = await authorize_run(state["authorizer"], caller, key)
    except AirflowRefused as error:
        return _refused_response(error)
    try:
        interval = _interval.validate_python(query["interval"])
    except KeyError:
        return _invalid_interval([{"type": "missing", "msg": "Field required", "input": None}])
    except ValidationError as error:
        return _invalid_interval(error.errors(include_url=False))
    task_ids = query.getlist("result") if "result" in query else None
    if not permission.grant.access.can_read_values:
        if task_ids:
            return JSONResponse({"detail": "User is not authorized to read XCom data for this Dag"}, 403)
        task_ids = []

    async def read() -> ReturnValues:
        return await state["run_store"].read_final_values(key, task_ids) if task_ids != [] else {}

    silence = min(max(interval, MIN_REPEAT_SECONDS), state["settings"].ping_interval)
    subscription = await state["hub"].subscribe(key, WatchOptions(until="run", include_output=False))
    if task_id := _find_loop_task(state["hub"].run_state(key), task_ids or ()):
        subscription.close()
        return _loop_task_response(task_id)
    permission.bind(subscription, ignore_expiry)
    return StateLines(
        Waiting(key, subscription, state["settings"].url_prefix, read, silence, state["scheduler"].counters["wait"])
    )


class Waiting(NamedTuple):
    """A waiting request."""

    key: RunKey
    subscription: Subscription
    url_prefix: str
    read: Callable[[], Awaitable[ReturnValues]]
    """Reads the return values of the last line."""

    silence: float
    """Seconds after which an unchanged state is sent again."""

    tally: TransportCounters
    """Counts waiting requests."""


class StateLines(Response):
    """The state of a run as lines of JSON, up to its end.

    If the end of the run cannot be sent, because the server stops or the run was deleted, the connection is reset: a
    complete body would make the last line look like the end of the run.
    """

    def __init__(self, waiting: Waiting) -> None:
        # No media type, as in Airflow: its Python client does not read a body that has this one.
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._waiting = waiting
        self._line = b""
        self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with closing(self._waiting.subscription) as subscription:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_lines(subscription, scope, receive, send)

    async def _send_lines(self, subscription: Subscription, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waiting.tally.count_waiting(), watch_due_frames(subscription, receive) as frames:
            while not frames.have_ended:
                wires = await frames.take(self._waiting.silence)
                lines = [self._line] if wires is None else [await self._build_line(wire) for wire in wires]
                if data := b"".join(lines):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        if self._complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            reset_response(scope)

    async def _build_line(self, wire: Wire) -> bytes:
        """Return the line for a frame; empty if the state has not changed."""
        frame = wire.frame
        if isinstance(frame, End) and frame.state is not None:
            return await self._read_last_line(frame.state)
        state = frame.run.state if isinstance(frame, Snapshot) else None
        if isinstance(frame, RunTransition):
            state = frame.state
        # A final state is sent once, with the values: clients stop reading at that line.
        line = b"" if state is None or state in FINAL_RUN_STATES else _encode_line({"state": state})
        if line in {b"", self._line}:
            return b""
        self._line = line
        return line

    async def _read_last_line(self, state: str) -> bytes:
        try:
            values = await self._waiting.read()
        except Unavailable as error:
            log.warning("Reset a client that waits for run %s: %s", self._waiting.key, error)
            return b""
        self._complete = True
        return build_last_line(self._waiting.key, state, values, self._waiting.url_prefix)


def build_last_line(key: RunKey, state: str, values: ReturnValues, url_prefix: str = "") -> bytes:
    """Return the line with the final state and the return values, as they are in the database.

    The values of a mapped task are a list. Values that are too large are in `references`, which Airflow does not have.
    """
    results: dict[str, str] = {}
    references: dict[str, object] = {}
    for task_id, keys in groupby(sorted(values), key=lambda key: key[0]):
        indexes = [map_index for _, map_index in keys]
        found = [values[task_id, index] for index in indexes]
        if any(value.json is None for value in found):
            entries = f"{url_prefix}{run_path(key)}/taskInstances/{quote(task_id, safe='')}/xcomEntries"
            href = f"{entries}/{RETURN_VALUE_KEY}" if indexes == [-1] else entries
            references[task_id] = {"href": href, "bytes": sum(value.bytes for value in found)}
        else:
            texts = [value.json or "" for value in found]
            results[task_id] = texts[0] if indexes == [-1] else f"[{', '.join(texts)}]"
    members = {"state": json.dumps(state)}
    if results:
        members["results"] = _join_members(results)
    if references:
        members["references"] = json.dumps(references)
    return _join_members(members).encode() + b"\n"


def _join_members(members: Mapping[str, str]) -> str:
    """Return a JSON object of members that are JSON already."""
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in members.items()) + "}"


def _find_loop_task(run: RunState | None, task_ids: Iterable[str]) -> str | None:
    """Return the first of some tasks that is in a task loop. Airflow permits no result mark there."""
    if run is None or run.graph is None:
        return None
    return next((task_id for task_id in task_ids if run.graph.loop_of(task_id) is not None), None)


def _encode_line(members: Mapping[str, object]) -> bytes:
    return json.dumps(members).encode() + b"\n"


def _invalid_interval(errors: Iterable[Mapping[str, Any]]) -> Response:
    """Return the response of FastAPI to a missing or invalid query parameter."""
    return JSONResponse({"detail": [{**error, "loc": ["query", "interval"]} for error in errors]}, 422)


def _refused_response(error: AirflowRefused) -> Response:
    headers = {} if error.challenge is None else {"WWW-Authenticate": error.challenge}
    return JSONResponse({"detail": str(error)}, error.status, headers)


def _loop_task_response(task_id: str) -> Response:
    text = (
        f"Cannot collect loop task {task_id!r} as a DagRun result; publish the result through a task outside the loop."
    )
    return JSONResponse({"detail": text}, 409)


def _not_found_response(key: RunKey) -> Response:
    text = f"The DagRun with dag_id: `{key.dag_id}` and run_id: `{key.run_id}` was not found"
    return JSONResponse({"detail": text}, 404)

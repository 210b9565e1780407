"""The part of Airflow's REST API that triggers runs, on a real socket; its runs are written to a real database.

Only for what a real Airflow can't do on demand: respond slowly, cut a connection, or run a DAG to
its end before it responds. `tests/airflow` has the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql
from support.waiting import eventually_async

CONFLICT = {
    "reason": "Unique constraint violation",
    "statement": "hidden",
    "orig_error": "hidden",
    "message": "Serious error when handling your request. Check logs for more details",
}
"""Airflow 3.3's error for a run that already exists (`api_fastapi.common.exceptions`)."""

REGION_ID = "0198b2f1-0000-7000-8000-000000000001"

INSTANCES = [
    {"region_id": REGION_ID, "region_index": number, "loop_iteration": {"loop_id": "loop", "iteration": number}}
    for number in (2, 1, 0)
]
"""Of a task in a loop of Airflow 3.4; other members are left out."""


class ReceivedRequest(NamedTuple):
    """A request that the stub received."""

    method: str
    target: str
    """Path and query, as they came over the wire."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[[ReceivedRequest], Awaitable[Response | None]]
"""A replacement for the stub's response; where it returns `None`, the stub responds."""


class AirflowStub:
    """An Airflow with the DAG `chat`, whose tasks are those of `CHAIN`, and with DAGs that tests add."""

    def __init__(self, database_url: str, version: UUID) -> None:
        self.url = ""
        self.received: list[ReceivedRequest] = []
        self.instead: Behaviour | None = None
        """Called before a run is created or returned."""

        self.then: Callable[[AirflowSql, RunKey], Awaitable[Response | None]] | None = None
        """Called after a run was created, and before the response."""

        self._database_url = database_url
        self.version = version
        self._others: dict[str, tuple[UUID, list[str]]] = {}
        """Version and tasks of other DAGs, by id."""

        self._number = 0
        self._runs: list[tuple[ReceivedRequest, RunKey]] = []
        self._over = asyncio.Event()

    @property
    def triggers(self) -> list[ReceivedRequest]:
        return [received for received in self.received if received.method == "POST"]

    @property
    def patches(self) -> list[ReceivedRequest]:
        return [received for received in self.received if received.method == "PATCH"]

    def find_run(self, trigger: ReceivedRequest) -> RunKey | None:
        """Return the run that a request has created, or that exists already under its id; `None` until then."""
        return next((key for received, key in self._runs if received is trigger), None)

    @property
    def newest_run(self) -> RunKey | None:
        """The run of the newest request to trigger one; `None` until it exists."""
        return self.find_run(self.triggers[-1]) if self.triggers else None

    async def add_dag(self, airflow: AirflowSql, data: Mapping[str, object], tags: Sequence[str] = ()) -> None:
        """Add a DAG in its serialised form."""
        dag: Any = data["dag"]
        version = await airflow.add_serialized_dag(dag["dag_id"], data)
        self._others[dag["dag_id"]] = version, [task["__var"]["task_id"] for task in dag["tasks"]]
        for tag in tags:
            await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ($1, $2)", dag["dag_id"], tag)

    async def hang(self) -> None:
        """Do not respond until the test ends."""
        await self._over.wait()

    @classmethod
    @asynccontextmanager
    async def serve(cls, database_url: str, airflow: AirflowSql) -> AsyncIterator[AirflowStub]:
        """Serve until the end of the context."""
        stub = cls(database_url, await airflow.add_dag("chat", CHAIN, {"clean_up": False}))
        run = "/api/v2/dags/{dag_id}/dagRuns/{run_id}"
        routes = [
            Route("/api/v2/dags/{dag_id}/dagRuns", stub._trigger, methods=["POST"]),
            Route(run, stub._get, methods=["GET"]),
            Route(run, stub._patch, methods=["PATCH"]),
            Route("/api/v2/dags", stub._respond_to_read({"dags": []}), methods=["GET"]),
            Route(
                "/api/v2/dags/{dag_id}/dagRuns",
                stub._respond_to_read({"dag_runs": [], "total_entries": 0}),
                methods=["GET"],
            ),
            Route(f"{run}/taskInstances", stub._respond_to_read({"task_instances": INSTANCES}), methods=["GET"]),
            Route(f"{run}/taskInstances/~/xcomEntries", stub._respond_to_read({"xcom_entries": []}), methods=["GET"]),
            Route(
                f"{run}/taskInstances/{{task_id}}/{{map_index}}/hitlDetails",
                stub._respond_to_read({}),
                methods=["PATCH"],
            ),
            Route(
                f"{run}/taskInstances/{{task_id}}/{{map_index}}/hitlDetails",
                stub._respond_to_read({"detail": "not found"}, 404),
                methods=["GET"],
            ),
            Route(f"{run}/hitlDetails", stub._respond_to_read({"hitl_details": []}), methods=["GET"]),
            Route("/api/v2/version", stub._respond_to_read({"version": "3.3.0"}), methods=["GET"]),
            Route("/auth/token", stub._log_in, methods=["POST"]),
            Route("/api/v2/auth/logout", stub._log_out, methods=["GET"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), port=0, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        try:
            await eventually_async(lambda: server.started or task.done(), what="the stub listens")
            stub.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            yield stub
        finally:
            stub._over.set()
            server.should_exit = True
            await task

    async def _record(self, request: Request) -> ReceivedRequest:
        target = request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else "")
        received = ReceivedRequest(request.method, target, dict(request.headers), await request.body())
        self.received.append(received)
        return received

    async def _trigger(self, request: Request) -> Response:
        received = await self._record(request)
        if self.instead is not None and (answer := await self.instead(received)) is not None:
            return answer
        self._number += 1
        run_id = received.json.get("dag_run_id") or f"manual__{self._number}"
        key = RunKey(request.path_params["dag_id"], run_id)
        async with AirflowSql.open(self._database_url) as airflow:
            try:
                await airflow.trigger(key, *self._others.get(key.dag_id, (self.version, list(CHAIN))))
            except asyncpg.UniqueViolationError:
                self._runs.append((received, key))
                return JSONResponse({"detail": CONFLICT}, 409)
            self._runs.append((received, key))
            if self.then is not None and (answer := await self.then(airflow, key)) is not None:
                return answer
        return JSONResponse(describe_run(key, "queued"))

    async def _get(self, request: Request) -> Response:
        received = await self._record(request)
        if self.instead is not None and (answer := await self.instead(received)) is not None:
            return answer
        key = RunKey(request.path_params["dag_id"], request.path_params["run_id"])
        async with AirflowSql.open(self._database_url) as airflow:
            state = await _state(airflow, key)
        return JSONResponse(describe_run(key, state)) if state else JSONResponse({"detail": "not found"}, 404)

    def _respond_to_read(self, found: dict[str, Any], status: int = 200) -> Callable[[Request], Awaitable[Response]]:
        """Respond to requests that the server makes only to check a permission."""

        async def respond(request: Request) -> Response:
            received = await self._record(request)
            if self.instead is not None and (answer := await self.instead(received)) is not None:
                return answer
            return JSONResponse(found, status)

        return respond

    async def _patch(self, request: Request) -> Response:
        received = await self._record(request)
        if self.instead is not None and (answer := await self.instead(received)) is not None:
            return answer
        key = RunKey(request.path_params["dag_id"], request.path_params["run_id"])
        async with AirflowSql.open(self._database_url) as airflow:
            if await _state(airflow, key) is None:
                return JSONResponse({"detail": "not found"}, 404)
            await airflow.set_run(key, received.json["state"])
        return JSONResponse(describe_run(key, received.json["state"]))

    async def _log_in(self, request: Request) -> Response:
        received = await self._record(request)
        if self.instead is not None and (answer := await self.instead(received)) is not None:
            return answer
        if received.json == {"username": "ada", "password": "right"}:
            return JSONResponse({"access_token": "head.payload.signature"}, 201)
        return JSONResponse({"detail": "Invalid credentials"}, 401)

    async def _log_out(self, request: Request) -> Response:
        await self._record(request)
        return Response(status_code=307, headers={"Location": "/auth/login"})


def malformed_bodies(**members: Any) -> list[Response]:
    """Generate bodies that Airflow's API never sends with status 200.

    Args:
        members: Members that the body can have, with values of a wrong type.
    """
    bodies = [b"", b"null", b"[]", b"5", b"{}", b'{"a":' * 100_000, b"\xff\xfe{", b"<html>Please log in</html>"]
    bodies += [json.dumps({name: value}).encode() for name, values in members.items() for value in values]
    return [Response(body, media_type="application/json") for body in bodies]


class TruncatedResponse(Response):
    """A response whose connection ends in the middle of its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b'{"dag_run_id":', "more_body": True})


async def _state(airflow: AirflowSql, key: RunKey) -> str | None:
    state: str | None = await airflow.connection.fetchval(
        "SELECT state FROM dag_run WHERE dag_id = $1 AND run_id = $2", *key
    )
    return state


def describe_run(key: RunKey, state: str | None) -> dict[str, Any]:
    return {"dag_id": key.dag_id, "dag_run_id": key.run_id, "state": state, "run_type": "manual"}

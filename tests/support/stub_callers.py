"""Callers of the stub of Airflow, whose permissions a test changes."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from starlette.responses import JSONResponse, Response

from support.airflow_stub import ReceivedRequest
from support.server import RunningServer


def unsigned_jwt(**claims: object) -> str:
    """Return a token as Airflow makes them, but without a signature."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS512'})}.{part(claims)}.{'x' * 86}"


def refusal(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


@dataclass
class CallerPermissions:
    """Airflow's responses to permission requests with one token, or one set of cookies."""

    token: str = field(default_factory=lambda: unsigned_jwt(sub="ada", exp=time.time() + 3600))
    runs: Response | None = None
    """Instead of a run, or a list of them."""

    xcoms: Response | None = None
    inputs: Response | None = None
    dags: Response | None = None
    """Instead of all runs, or a list of DAGs."""

    known: tuple[str, ...] = ("chat", "secret")
    """DAGs that are listed, but for those that follow."""

    listed: Response | None = None
    """Instead of a list of DAGs."""

    of_dag: dict[str, Response] = field(default_factory=dict)
    """Instead of runs of these DAGs."""

    xcoms_of: dict[str, Response] = field(default_factory=dict)
    """Instead of XComs of these DAGs."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def revoke(self) -> None:
        """Log the user out."""
        self.runs = self.xcoms = self.inputs = self.dags = refusal(403, "Invalid JWT token")

    def expire(self) -> None:
        self.runs = self.xcoms = self.inputs = self.dags = refusal(401, "Token Expired")

    def forbid(self) -> None:
        """Take all permissions away."""
        self.runs = self.xcoms = self.inputs = self.dags = refusal(403, "Forbidden")

    def forbid_xcoms(self) -> None:
        """Take the permission for XComs away."""
        self.xcoms = refusal(403, "Forbidden")

    def forbid_inputs(self) -> None:
        """Take the permission for requests for human input away."""
        self.inputs = refusal(403, "Forbidden")


class StubPermissions:
    """Responds to the requests of `--auth airflow`, for `AirflowStub.instead`."""

    def __init__(self, *callers: CallerPermissions) -> None:
        self.callers = list(callers)
        self.down: Response | None = None
        """Response to every request, as from an Airflow that does not work."""

    async def __call__(self, received: ReceivedRequest) -> Response | None:
        if self.down is not None:
            return self.down
        credentials = received.headers.get("authorization", "") + received.headers.get("cookie", "")
        rights = next((one for one in self.callers if one.token in credentials), None)
        if rights is None:
            return refusal(401, "Not authenticated")
        return _respond(rights, received)


def _respond(rights: CallerPermissions, received: ReceivedRequest) -> Response | None:
    path = received.target.partition("?")[0]
    if "/xcomEntries" in path:
        return rights.xcoms_of.get(path.split("/")[4], rights.xcoms)
    if path.endswith("/hitlDetails"):
        return rights.inputs
    if path == "/api/v2/dags":
        known = [{"dag_id": dag_id} for dag_id in rights.known if dag_id not in rights.of_dag]
        page = JSONResponse({"dags": known if "offset=0" in received.target else []})
        return rights.listed or rights.dags or page
    if path == "/api/v2/dags/~/dagRuns":
        return rights.dags
    return rights.of_dag.get(path.split("/")[4], rights.runs)


def client_for(server: RunningServer, caller: CallerPermissions | None = None) -> httpx.AsyncClient:
    """Return a client with the credentials of a caller, or without any."""
    return httpx.AsyncClient(base_url=server.url, headers=caller.headers if caller else {}, timeout=15)


@asynccontextmanager
async def clients_of_two_users(
    server: RunningServer, permissions: StubPermissions, ada: CallerPermissions
) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient, httpx.AsyncClient]]:
    """Yield clients of Ada, of Bob, and of Ada with a renewed token."""
    bob = CallerPermissions(unsigned_jwt(sub="bob"))
    renewed = CallerPermissions(unsigned_jwt(sub="ada", exp=4_000_000_000))
    permissions.callers += [bob, renewed]
    async with (
        client_for(server, ada) as plain,
        client_for(server, bob) as other,
        client_for(server, renewed) as later,
    ):
        yield plain, other, later

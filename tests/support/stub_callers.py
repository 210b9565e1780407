"""Callers whose rights a test gives and takes, for the stub of Airflow."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field

import httpx
from starlette.responses import JSONResponse, Response

from support.airflow_stub import Asked
from support.server import RunningServer


def jwt(**claims: object) -> str:
    """A token as Airflow makes them, but that nobody has signed it."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS512'})}.{part(claims)}.{'x' * 86}"


def refused(status: int, detail: str) -> Response:
    return JSONResponse({"detail": detail}, status)


@dataclass
class Rights:
    """What Airflow says to the questions about one token, or one set of cookies."""

    token: str = field(default_factory=lambda: jwt(sub="ada", exp=time.time() + 3600))
    runs: Response | None = None
    """Instead of a run, or a list of them."""

    xcoms: Response | None = None
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
        """The user logs out."""
        self.runs = self.xcoms = self.dags = refused(403, "Invalid JWT token")

    def expire(self) -> None:
        self.runs = self.xcoms = self.dags = refused(401, "Token Expired")

    def forbid(self) -> None:
        """The user loses all permissions."""
        self.runs = self.xcoms = self.dags = refused(403, "Forbidden")

    def withhold(self) -> None:
        """The user loses the permission for XComs."""
        self.xcoms = refused(403, "Forbidden")


class Door:
    """Answers the questions of `--auth airflow`, for `AirflowStub.instead`."""

    def __init__(self, *callers: Rights) -> None:
        self.callers = list(callers)
        self.down: Response | None = None
        """Instead of everything, as of an Airflow that does not work."""

    async def __call__(self, asked: Asked) -> Response | None:
        if self.down is not None:
            return self.down
        said = asked.headers.get("authorization", "") + asked.headers.get("cookie", "")
        rights = next((one for one in self.callers if one.token in said), None)
        if rights is None:
            return refused(401, "Not authenticated")
        return _answer(rights, asked)


def _answer(rights: Rights, asked: Asked) -> Response | None:
    path = asked.target.partition("?")[0]
    if "/xcomEntries" in path:
        return rights.xcoms_of.get(path.split("/")[4], rights.xcoms)
    if path == "/api/v2/dags":
        known = [{"dag_id": dag_id} for dag_id in rights.known if dag_id not in rights.of_dag]
        page = JSONResponse({"dags": known if "offset=0" in asked.target else []})
        return rights.listed or rights.dags or page
    if path == "/api/v2/dags/~/dagRuns":
        return rights.dags
    return rights.of_dag.get(path.split("/")[4], rights.runs)


def client_of(server: RunningServer, caller: Rights | None = None) -> httpx.AsyncClient:
    """Return a client of this caller's, or of somebody who does not say who he is."""
    return httpx.AsyncClient(base_url=server.url, headers=caller.headers if caller else {}, timeout=15)

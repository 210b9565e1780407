"""A client for the parts of Airflow's REST API that the demo and the tests use."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from stream_server.cli.demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

REQUEST_SECONDS = 60.0
RUN_SECONDS = 120.0
POLL_SECONDS = 0.2
FINAL_STATES = frozenset({"success", "failed"})


class DagImportError(NamedTuple):
    """A DAG file that Airflow could not import."""

    bundle: str
    """Name of the DAG bundle: `dags-1`."""

    file: str
    """Path below the folder of the bundle."""

    trace: str
    """Traceback; the last line is the error."""


class AirflowRestClient:
    """A blocking client of one user.

    Args:
        url: Airflow's address: `http://127.0.0.1:8080`.
        username: A user of the simple auth manager.
        password: The user's password.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self._login = {"username": username, "password": password}
        # Without the proxies in the environment, which cannot reach the loopback interface.
        self._http = httpx.Client(base_url=url, timeout=REQUEST_SECONDS, trust_env=False)
        self._token: str | None = None

    @property
    def token(self) -> str:
        """A bearer token of the user, valid for a day; requested on first use.

        Raises:
            httpx.HTTPError: The login failed.
        """
        if self._token is None:
            response = self._http.post("/auth/token", json=self._login).raise_for_status()
            self._token = str(response.json()["access_token"])
        return self._token

    def fetch_health(self) -> dict[str, Any] | None:
        """Return Airflow's health, `{"scheduler": {"status": "healthy"}, …}`; None if it does not respond."""
        try:
            response = self._http.get("/api/v2/monitor/health")
        except httpx.TransportError:
            return None
        return dict(response.json()) if response.is_success else None

    def is_healthy(self, component: str) -> bool:
        """Whether a component, such as `scheduler` or `dag_processor`, reports that it is healthy."""
        health = self.fetch_health()
        return health is not None and health[component]["status"] == "healthy"

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401 (httpx's own)
        """Send a request of the user to a path below `/api/v2`. An error status raises no exception.

        Args:
            method: GET, POST, PATCH or DELETE.
            path: `/dags/chat_answer`.
            arguments: As for `httpx.Client.request`.
        """
        headers = {"Authorization": f"Bearer {self.token}"}
        return self._http.request(method, f"/api/v2{path}", headers=headers, **arguments)

    def get_dag(self, dag_id: str) -> dict[str, Any] | None:
        """Return a DAG; None if Airflow does not have it."""
        response = self.request("GET", f"/dags/{dag_id}")
        return _json_object(response) if response.status_code != httpx.codes.NOT_FOUND else None

    def set_paused(self, dag_id: str, *, paused: bool = True) -> None:
        """Pause or unpause a DAG."""
        _json_object(self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": paused}))

    def get_import_errors(self) -> list[DagImportError]:
        """Return the import errors, of at most 100 files."""
        found = _json_object(self.request("GET", "/importErrors", params={"limit": 100}))["import_errors"]
        return [DagImportError(error["bundle_name"], error["filename"], error["stack_trace"]) for error in found]

    def trigger_run(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> str:
        """Trigger a run and return its id.

        Raises:
            DemoError: Airflow returned an error.
        """
        body: dict[str, Any] = {"logical_date": None, "conf": dict(conf or {})}
        if run_id is not None:
            body["dag_run_id"] = run_id
        return str(_json_object(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body))["dag_run_id"])

    def get_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """Return a run: `{"state": "running", …}`."""
        return _json_object(self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}"))

    def get_task_states(self, dag_id: str, run_id: str) -> dict[str, list[str | None]]:
        """Return the states of a run's task instances by task ID, ordered by map index."""
        response = self.request("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances", params={"limit": 100})
        states: dict[str, list[str | None]] = {}
        for instance in sorted(_json_object(response)["task_instances"], key=lambda instance: instance["map_index"]):
            states.setdefault(instance["task_id"], []).append(instance["state"])
        return states

    def get_return_value(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:  # noqa: ANN401 (any JSON)
        """Return the return value of a task instance."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/return_value"
        return _json_object(self.request("GET", path, params={"map_index": map_index, "deserialize": False}))["value"]

    def wait_at_airflow(self, dag_id: str, run_id: str, interval: float = 1.0) -> dict[str, Any]:
        """Wait for the end of a run with Airflow's own endpoint. Return the last line of its response."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/wait"
        lines = self.request("GET", path, params={"interval": interval}).raise_for_status().text.splitlines()
        return dict(json.loads(lines[-1]))

    def wait_until_finished(self, dag_id: str, run_id: str, within: float = RUN_SECONDS) -> str:
        """Wait until a run, with its teardowns, has finished. Return its state.

        Raises:
            DemoError: The run did not finish within `within` seconds.
        """
        deadline = time.monotonic() + within
        while (state := str(self.get_run(dag_id, run_id)["state"])) not in FINAL_STATES:
            if time.monotonic() > deadline:
                states = self.get_task_states(dag_id, run_id)
                raise DemoError(f"run {run_id} of {dag_id} is {state} after {within:.0f} s; its tasks: {states}")
            time.sleep(POLL_SECONDS)
        return state

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in a response.

    Raises:
        DemoError: The response is an error.
    """
    if response.is_error:
        request = response.request
        raise DemoError(
            f"Airflow returned {response.status_code} for {request.method} {request.url.path}: {response.text}"
        )
    return dict(response.json())

"""What we ask of Airflow's REST API, with the caller's own rights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx

from stream_server.errors import AirflowError
from stream_server.run_state import RunKey

TIMEOUT_SECONDS = 30.0


class AirflowApi:
    """Airflow's REST API (`/api/v2`), as one caller sees it.

    Args:
        client: An open client whose base URL is Airflow's address.
        token: The caller's bearer token.
    """

    def __init__(self, client: httpx.AsyncClient, token: str | None) -> None:
        self._client = client
        self._token = token

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, token: str | None) -> AsyncIterator[AirflowApi]:
        """Connect to an Airflow at `url`, the address of its API server with no path of the API."""
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS) as client:
            yield cls(client, token)

    async def login(self, username: str, password: str) -> None:
        """Exchange a user's name and password for a token (`POST /auth/token`).

        Raises:
            AirflowError: Airflow refuses them, or does not answer.
        """
        answer = await self._post("/auth/token", {"username": username, "password": password})
        self._token = str(answer["access_token"])

    async def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> RunKey:
        """Trigger a DAG and return its run.

        Raises:
            AirflowError: Airflow refuses, or does not answer. Without an answer the run may have been created.
        """
        body: dict[str, Any] = {"conf": conf, "logical_date": None}
        if run_id is not None:
            body["dag_run_id"] = run_id
        answer = await self._post(f"/api/v2/dags/{quote(dag_id, safe='')}/dagRuns", body)
        return RunKey(dag_id, str(answer["dag_run_id"]))

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            response = await self._client.post(path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise AirflowError(
                f"Airflow does not answer at {self._client.base_url} ({error or type(error).__name__})"
            ) from error
        if response.is_error:
            raise AirflowError(
                f"Airflow answered {response.status_code} to POST {path}: {_detail(response)}",
                http_status=response.status_code,
            )
        return dict(response.json())


def _detail(response: httpx.Response) -> str:
    """Return what Airflow says of an error, without its surroundings."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
    return detail if isinstance(detail, str) else str(detail)[:500]

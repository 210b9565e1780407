"""Answers to requests for human input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from stream_server.client.errors import ConnectionLost, Refused, error_detail

TIMEOUT_SECONDS = 60.0

_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


async def answer_input(
    url: str,
    dag_id: str,
    run_id: str,
    task_id: str,
    chosen_options: Sequence[str],
    *,
    map_index: int = -1,
    iteration: int | None = None,
    params_input: Mapping[str, Any] | None = None,
    asked_at: str | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """Answer a request for human input of a task, and return the answer as it was written.

    Args:
        url: Address of the server.
        dag_id: ID of the DAG.
        run_id: ID of the run.
        task_id: The task.
        chosen_options: One of the options, or several if the request permits it.
        map_index: Index of an instance of a mapped task.
        iteration: Iteration of the task loop (Airflow 3.4) around the task.
        params_input: JSON value by field of the form.
        asked_at: `asked_at` of the request. The answer is refused if the task has asked again since.
        token: Bearer token.

    Raises:
        Refused: The request is not open any more (409), the caller may not answer it (403), or the answer is invalid.
        ConnectionLost: There was no response. The request may have been answered.
    """
    names = (quote(name, safe="") for name in (dag_id, run_id, task_id))
    path = "/api/v2/dags/{}/dagRuns/{}/taskInstances/{}/input".format(*names)
    body: dict[str, Any] = {"chosen_options": [*chosen_options], "params_input": {**(params_input or {})}}
    if asked_at is not None:
        body["asked_at"] = asked_at
    params = {"map_index": map_index, **({} if iteration is None else {"iteration": iteration})}
    scheme, _, rest = (url if "://" in url else f"http://{url}").rstrip("/").partition("://")
    base = f"{_HTTP_SCHEMES.get(scheme, scheme)}://{rest}"
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, headers=headers) as client:
            response = await client.post(base + path, params=params, json=body)
    except httpx.HTTPError as error:
        raise ConnectionLost(f"no response to the answer ({type(error).__name__}: {error})") from error
    if not response.is_success:
        raise Refused(response.status_code, error_detail(response.content))
    return dict(response.json())

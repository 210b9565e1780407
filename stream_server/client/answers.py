"""Answers to requests for human input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stream_server.client.async_client import AsyncClient


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
    async with AsyncClient(url, token=token, patience=0) as client:
        receipt = await client.answer(
            dag_id,
            run_id,
            task_id,
            chosen_options,
            map_index=map_index,
            iteration=iteration,
            params_input=params_input,
            asked_at=asked_at,
        )
    return dict(msgspec.to_builtins(receipt))

"""Airflow 3.3's own result mark, on a task with a downstream task.

Without `@result`, the result would be that of the last task, `archive`. Airflow 3.3 does not store the mark. So the
first run of a DAG version has its result at its end, and later ones as soon as `answer` has returned. With the marks of
`stream_server.authoring`, the first run has an early result, too. Trigger it with
`{"question": "Why?", "archive_seconds": 5}`.
"""

from __future__ import annotations

import time

from airflow.sdk import Param, dag, get_current_context, result, task


@dag(
    schedule=None,
    catchup=False,
    tags=["example"],
    params={
        "question": Param("Why is the sky blue?", type="string"),
        "archive_seconds": Param(5, type="number", minimum=0),
    },
)
def native_result():
    @result
    @task
    def answer() -> str:
        return f"You asked: {get_current_context()['params']['question']}"

    @task
    def archive(text: str) -> None:
        time.sleep(get_current_context()["params"]["archive_seconds"])

    archive(answer())


native_result()

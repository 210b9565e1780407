"""Airflow 3.3's own mark, on a task that other tasks follow.

Without ``@result`` the answer would be that of ``archive``, the last task. Airflow 3.3 does not store the mark, so
the first run of a version answers when it ends, and later ones as soon as ``answer`` has returned. The marks of
``stream_server.authoring`` answer early in the first run too. Trigger it with
``{"question": "Why?", "archive_seconds": 5}``.
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

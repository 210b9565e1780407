"""DAGs that answer questions in other ways than `chat_stream`."""

from __future__ import annotations

from airflow.sdk import DAG, task

from stream_server.authoring import result_task

with DAG("chat_fails", schedule=None, tags=["chat"]):

    @result_task
    @task.stream(retries=0)
    def fail_halfway():
        yield "half"
        raise ValueError("no more")

    fail_halfway()

"""A task that waits for human input, downstream of one that does not."""

from __future__ import annotations

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, task

with DAG("human_input", schedule=None):

    @task
    def draft() -> str:
        return "draft"

    @task
    def publish() -> str:
        return "published"

    draft() >> ApprovalOperator(task_id="approve", subject="Publish it?") >> publish()

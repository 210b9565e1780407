"""Tasks that return a value and skip others."""

from __future__ import annotations

from airflow.sdk import DAG, task


@task
def chosen() -> str:
    return "chosen"


@task
def skipped() -> str:
    return "skipped"


with DAG("branch_returns"):

    @task.branch
    def choose() -> str:
        return "chosen"

    @task.short_circuit
    def go_on() -> str:
        return ""

    choose() >> [chosen(), skipped()]
    go_on() >> skipped.override(task_id="skipped_too")()

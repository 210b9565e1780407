"""A DAG without access control of its own."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False)
def for_all():
    @task
    def answer() -> dict[str, str]:
        return {"text": "because"}

    answer()


for_all()

"""A DAG with `access_control`, as Airflow's auth manager of Flask AppBuilder supports it."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(
    schedule=None,
    catchup=False,
    access_control={
        "guest": {"DAGs": {"can_read"}},
        "guest without XComs": {"DAGs": {"can_read"}},
        "guest of runs": {"DAGs": {"can_read"}, "DAG Runs": {"can_read"}},
        "triggering guest": {"DAGs": {"can_read", "can_edit"}, "DAG Runs": {"can_create"}},
    },
)
def for_guests():
    @task
    def answer() -> dict[str, str]:
        return {"text": "because"}

    answer()


for_guests()

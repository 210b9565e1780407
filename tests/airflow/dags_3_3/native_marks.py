"""Two parallel tasks with Airflow 3.3's own mark, and a task that ends the run later."""

from __future__ import annotations

import time

from airflow.sdk import dag, result, task

RIGHT_SECONDS, ARCHIVE_SECONDS = 2.0, 5.0


def two_results(dag_id: str) -> None:
    """Make a DAG. Each test needs a DAG that has not run before."""

    @dag(dag_id=dag_id, schedule=None, catchup=False)
    def pipeline():
        @result
        @task
        def left() -> str:
            return "left"

        @result
        @task
        def right() -> str:
            time.sleep(RIGHT_SECONDS)
            return "right"

        @task
        def archive() -> None:
            time.sleep(ARCHIVE_SECONDS)

        [left(), right()] >> archive()

    pipeline()


two_results("native_marks_streamed")
two_results("native_marks_called")

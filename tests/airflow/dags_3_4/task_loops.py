"""Task loops of Airflow 3.4."""

from __future__ import annotations

import time

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import dag, task, task_group

from stream_server.authoring import emit

ITERATIONS = 3
ARCHIVE_SECONDS = 5.0


@dag(dag_id="loop_drafts", schedule=None, catchup=False)
def drafts():
    """Drafts a text until it is long enough; the task after the loop ends the run later."""

    @task_group
    def revise():
        @task(retries=1, retry_delay=0.5)
        def draft(*, loop, ti) -> str:
            emit(f"draft {loop.index}, try {ti.try_number}")
            if loop.index == 1 and ti.try_number == 1:
                raise RuntimeError("the second draft needs two tries")
            return "x" * (loop.index + 1)

        @task
        def check(text: str) -> str:
            return text

        check(draft())

    def is_long_enough(*, loop) -> bool:
        return len(loop.result) >= ITERATIONS

    @task
    def archive() -> None:
        time.sleep(ARCHIVE_SECONDS)

    revise.loop(max_iterations=ITERATIONS + 2, until=is_long_enough) >> archive()


@dag(dag_id="loop_squares", schedule=None, catchup=False)
def squares():
    """Squares numbers again and again; the loop is the only leaf."""

    @task_group
    def repeat():
        @task
        def numbers(*, loop) -> list[int]:
            return [2, 3] if loop.index == 0 else [*loop.previous]

        @task
        def square(number: int) -> int:
            return number**2

        square.expand(number=numbers())

    repeat.loop(max_iterations=2)


@dag(dag_id="loop_fails", schedule=None, catchup=False)
def fails():
    """Fails in the second iteration."""

    @task_group
    def attempt():
        @task
        def step(*, loop) -> int:
            emit(f"step {loop.index}")
            emit("last output")
            if loop.index == 1:
                raise RuntimeError("the second iteration fails")
            return int(loop.index)

        step()

    @task
    def publish() -> str:
        return "published"

    attempt.loop(max_iterations=4) >> publish()


@dag(dag_id="loop_questions", schedule=None, catchup=False)
def questions():
    """Asks in each iteration."""

    @task_group
    def review():
        ApprovalOperator(task_id="ask", subject="Go on?")

    review.loop(max_iterations=2)


drafts()
questions()
squares()
fails()

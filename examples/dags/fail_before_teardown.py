"""A run that certainly fails long before it ends.

The task `think` fails, so `answer` can never run. The failure is certain then, but the run ends only after the slow
teardown. Trigger it with `{"teardown_seconds": 3}`.
"""

from __future__ import annotations

import time

from airflow.sdk import Param, dag, get_current_context, setup, task, teardown


@dag(
    schedule=None,
    catchup=False,
    tags=["example"],
    default_args={"retries": 0},
    params={"teardown_seconds": Param(10, type="number", minimum=0)},
)
def fail_before_teardown():
    @setup
    def open_session() -> str:
        return "session-1"

    @task
    def retrieve() -> list[str]:
        return ["a fact"]

    @task
    def think(facts: list[str]) -> str:
        raise RuntimeError("The model is out of memory.")

    @task
    def answer(thought: str) -> str:
        return thought

    @teardown
    def close_session(session: str) -> None:
        time.sleep(get_current_context()["params"]["teardown_seconds"])

    session = open_session()
    facts = retrieve()
    answered = answer(think(facts))
    session >> facts
    answered >> close_session(session)


fail_before_teardown()

"""A result that differs per try, and a failure six levels above the result task."""

from __future__ import annotations

import time
from pathlib import Path

from airflow.sdk import dag, get_current_context, task, teardown

WAIT_SECONDS = 60.0


@dag(schedule=None)
def numbered_tries():
    """Each try returns its number. The teardown waits until the file named in `conf` exists."""

    @task
    def answer() -> int:
        return get_current_context()["ti"].try_number

    @teardown
    def clean_up() -> None:
        cleared, deadline = Path(get_current_context()["dag_run"].conf["cleared"]), time.monotonic() + WAIT_SECONDS
        while not cleared.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{cleared} was not created")
            time.sleep(0.05)

    answer() >> clean_up()


@dag(schedule=None, default_args={"retries": 0})
def failure_six_levels_up():
    """The result task is six levels below the task that fails."""

    @task
    def fail() -> None:
        raise RuntimeError("as planned")

    @task
    def level() -> str:
        return "never"

    below = fail()
    for number in range(1, 7):
        here = level.override(task_id=f"level_{number}")()
        below >> here
        below = here


numbered_tries()
failure_six_levels_up()

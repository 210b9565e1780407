"""Results that differ per try, and a failure six levels above the result task."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import dag, get_current_context, task, teardown

WAIT_SECONDS = 60.0


def wait_for_file() -> None:
    """Wait until the file that `conf` names as `cleared` exists."""
    cleared, deadline = Path(get_current_context()["dag_run"].conf["cleared"]), time.monotonic() + WAIT_SECONDS
    while not cleared.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{cleared} was not created")
        time.sleep(0.05)


@dag(schedule=None)
def numbered_tries():
    """Each try returns its number. The teardown waits."""

    @task
    def answer() -> int:
        return get_current_context()["ti"].try_number

    @teardown
    def clean_up() -> None:
        wait_for_file()

    answer() >> clean_up()


@dag(schedule=None, default_args={"retry_delay": timedelta(seconds=1)})
def numbered_tries_pushed_early():
    """Each try pushes its number as its return value, and waits before it ends."""

    @task
    def answer() -> None:
        ti = get_current_context()["ti"]
        ti.xcom_push("return_value", ti.try_number)
        wait_for_file()

    answer()


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
numbered_tries_pushed_early()
failure_six_levels_up()

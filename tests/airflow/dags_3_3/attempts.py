"""DAGs whose task instances have several tries, or none that runs through at once."""

from __future__ import annotations

import time
from datetime import timedelta

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, dag, get_current_context, setup, task, teardown

KILLED_SECONDS = 60.0
"""Longer than it takes until a task that is cleared while it runs is killed."""


class DeferringOperator(BaseOperator):
    """Defers, and returns a value when it is resumed."""

    def execute(self, context):
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=0.5)), method_name="resume")

    def resume(self, context, event=None):
        return "resumed"


@dag(schedule=None)
def attempts_deferred():
    DeferringOperator(task_id="wait")


@dag(schedule=None)
def attempts_mapped_and_retried():
    """Of the instances, one needs a second try, and one fails in both."""

    @task
    def numbers() -> list[int]:
        return [0, 1, 2]

    @task(retries=1, retry_delay=0.5)
    def each(number: int) -> int:
        try_number = get_current_context()["ti"].try_number
        if number == 2 or (number == 1 and try_number == 1):
            raise RuntimeError(f"try {try_number} of {number} fails")
        return number

    each.expand(number=numbers())


@dag(schedule=None)
def attempts_restarted():
    """The first try runs until it is killed."""

    @task
    def work() -> str:
        if get_current_context()["ti"].try_number == 1:
            time.sleep(KILLED_SECONDS)
        return "worked"

    work()


@dag(schedule=None)
def attempts_with_teardown():
    """The work between a setup and a teardown fails."""

    @setup
    def open_it() -> str:
        return "opened"

    @task
    def work() -> None:
        raise RuntimeError("as planned")

    @task
    def report() -> None:
        pass

    @teardown
    def close_it() -> None:
        pass

    opened, closed = open_it(), close_it()
    opened >> work() >> report() >> closed
    opened >> closed


attempts_deferred()
attempts_mapped_and_retried()
attempts_restarted()
attempts_with_teardown()

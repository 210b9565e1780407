"""A mapped result task: one task instance for each number.

Trigger it with `{"numbers": [1, 2, 3]}`. The result is `[1, 4, 9]`, in the order of the numbers.
"""

from __future__ import annotations

from airflow.sdk import Param, dag, get_current_context, task


@dag(
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "tool", "tool:read-only"],
    params={"numbers": Param([1, 2, 3, 4, 5], type="array", items={"type": "number"})},
)
def mapped_squares():
    @task
    def numbers() -> list[float]:
        return get_current_context()["params"]["numbers"]

    @task
    def square(number: float) -> float:
        return number * number

    square.expand(number=numbers())


mapped_squares()

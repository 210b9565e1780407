"""Requests for human input of all kinds, for every Airflow that has them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param


class AskingAgain(HITLOperator):
    """Fails after its first answer, so that its next try asks again."""

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        answer = super().execute_complete(context, event)
        if context["ti"].try_number == 1:
            raise RuntimeError("the first answer is not good enough")
        return answer


with DAG("human_forms", schedule=None, catchup=False):
    HITLOperator(
        task_id="several",
        subject="Which colours?",
        body="For the *front door*.",
        options=["red", "blue", "green"],
        multiple=True,
        params={
            "count": Param(1, type="integer", minimum=1, description="How many?"),
            "note": Param(None, type=["null", "string"]),
        },
    )
    HITLOperator.partial(task_id="each", options=["yes", "no"]).expand(subject=["The first?", "The second?"])
    # The id of a user is the name in Airflow's simple auth manager, and a number in that of Flask AppBuilder.
    HITLOperator(
        task_id="assigned",
        subject="May it start?",
        options=["yes", "no"],
        assigned_users=[{"id": "admin", "name": "admin"}, {"id": "1", "name": "admin"}],
    )
    HITLOperator(
        task_id="expiring",
        subject="Is anyone there?",
        options=["yes", "no"],
        defaults=["no"],
        response_timeout=timedelta(seconds=1),
    )
    AskingAgain(task_id="again", subject="Are you sure?", options=["yes", "no"], retries=1, retry_delay=timedelta(0))

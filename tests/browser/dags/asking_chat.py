"""A chat DAG that asks a person before it answers."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import DAG, Param, task

with DAG("asking_chat", schedule=None, tags=["chat"]):
    ask = HITLOperator(
        task_id="ask",
        subject="Which colour?",
        body="It is for the *front door*.",
        options=["red", "blue"],
        params={
            "count": Param(1, type="integer", description="How many?"),
            "finish": Param("matt", enum=["matt", "glossy"]),
            "urgent": Param(False, type="boolean"),
            "note": Param(None, type=["null", "string"]),
        },
    )

    @task
    def paint(reply: dict[str, Any]) -> str:
        values = reply["params_input"]
        return f"{reply['chosen_options'][0]} {values['count']} {values['finish']} {values['urgent']} {values['note']}"

    paint(ask.output)

"""An agent of the provider common.ai with a scripted model, which needs no network."""

from __future__ import annotations

import json
import os

from airflow.sdk import DAG, get_current_context, task
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import SetXCom

try:
    from airflow.providers.common.ai.operators.agent import AgentOperator
except ImportError:  # It needs Python 3.11.
    AgentOperator = None

os.environ["AIRFLOW_CONN_SCRIPTED"] = '{"conn_type": "pydanticai", "extra": {"model": "test"}}'


def get_weather(city: str) -> dict[str, object]:
    return {"city": city, "celsius": 21}


def send_mail(text: str) -> str:
    return f"sent: {text}"


if AgentOperator is not None:
    from pydantic_ai import Tool
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models.function import DeltaThinkingPart, DeltaToolCall, FunctionModel

    from stream_server.authoring import result_task
    from stream_server.authoring.pydantic_ai import StreamOutput

    RESPONSES = (
        (
            {0: DeltaThinkingPart(content="They ask ")},
            {0: DeltaThinkingPart(content="for the weather.")},
            {1: DeltaToolCall(name="get_weather", json_args='{"city": "Paris"}', tool_call_id="c1")},
        ),
        ("I send it.", {1: DeltaToolCall(name="send_mail", json_args='{"text": "21"}', tool_call_id="c2")}),
        ("It is ", "warm."),
    )

    async def respond(messages, _info):
        for delta in RESPONSES[sum(isinstance(message, ModelResponse) for message in messages)]:
            yield delta

    class Scripted(AbstractCapability):
        """Replaces the model of the connection."""

        def get_wrapper_model(self, _model):
            return FunctionModel(stream_function=respond)

    @task
    def push_as_other_sdks() -> None:
        """Send the message that the SDKs of other languages send to the supervisor."""
        context = get_current_context()
        coordinates = {name: getattr(context["ti"], name) for name in ("dag_id", "run_id", "task_id", "map_index")}
        value = {"try_number": context["ti"].try_number, "index": 0.0, "items": [{"chunk": "a"}, {"thinking": "b"}]}
        task_runner.SUPERVISOR_COMMS.send(SetXCom(key="stream_server_output", value=value, **coordinates))
        value = {**value, "index": 2, "items": [{"chunk": "c"}]}
        task_runner.SUPERVISOR_COMMS.send(SetXCom(key="stream_server_output", value=json.dumps(value), **coordinates))

    with DAG("agent", schedule=None, tags=["chat"]):
        push_as_other_sdks()
        result_task(
            AgentOperator(
                task_id="answer",
                prompt="How is the weather?",
                llm_conn_id="scripted",
                agent_params={"tools": [get_weather, Tool(send_mail, requires_approval=True)]},
                capabilities=[StreamOutput(), Scripted()],
            )
        )

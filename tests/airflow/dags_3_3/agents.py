"""An agent of the provider common.ai with a scripted model, which needs no network."""

from __future__ import annotations

import os

from airflow.sdk import DAG

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

    with DAG("agent", schedule=None, tags=["chat"]):
        result_task(
            AgentOperator(
                task_id="answer",
                prompt="How is the weather?",
                llm_conn_id="scripted",
                agent_params={"tools": [get_weather, Tool(send_mail, requires_approval=True)]},
                capabilities=[StreamOutput(), Scripted()],
            )
        )

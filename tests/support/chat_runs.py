"""Runs of the stub's DAG `chat` that answer a question."""

from __future__ import annotations

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.waiting import eventually_async

AGENT_ITEMS: tuple[dict[str, object], ...] = (
    {"thinking": "They ask "},
    {"thinking": "for the weather."},
    {"tool_call": {"id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}},
    {"tool_result": {"id": "c1", "result": {"celsius": 21}}},
    {"chunk": "Let me check."},
    {"tool_call": {"id": "c2", "name": "get_time", "arguments": "{"}},
    {"tool_result": {"id": "c2", "error": "No clock"}},
    {"thinking": "21 degrees."},
    {"chunk": "\n\nIt is "},
    {"chunk": "warm."},
)
"""Output of an agent. The task returns its last message, `AGENT_ANSWER`."""

AGENT_ANSWER = "It is warm."


async def begin_answer(airflow: AirflowSql, stub: AirflowStub, *words: object) -> RunKey:
    """Let the task `answer` of the run that was triggered last write some words."""
    await eventually_async(lambda: stub.triggers, what="a run is triggered")
    trigger = stub.triggers[-1]
    await eventually_async(lambda: stub.find_run(trigger), what="the run exists")
    key = stub.find_run(trigger)
    assert key is not None
    await airflow.set_run(key, "running")
    await airflow.start_task(key, "answer")
    if words:
        await airflow.emit_output(key, "answer", 0, *words)
    return key


async def fail_answer(airflow: AirflowSql, key: RunKey) -> None:
    """Let the task `answer` fail, and the run with it."""
    await airflow.set_task(key, "answer", "failed")
    await airflow.set_run(key, "failed")


async def retry_answer(airflow: AirflowSql, key: RunKey, text: str) -> None:
    """Let the task `answer` fail and write another text in its second try."""
    await airflow.set_task(key, "answer", "up_for_retry")
    await airflow.archive_try(key, "answer")
    await airflow.start_task(key, "answer")
    await airflow.emit_output(key, "answer", 0, text, try_number=2)
    await airflow.push(key, "answer", text)


async def ask_human(airflow: AirflowSql, key: RunKey, task_id: str = "ask") -> None:
    """Let a task request human input."""
    await airflow.start_task(key, task_id)
    await airflow.request_input(key, task_id, subject="Publish?")
    await airflow.set_task(key, task_id, "awaiting_input")

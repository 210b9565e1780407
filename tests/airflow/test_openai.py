"""OpenAI's own client asks DAGs of a real Airflow."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from stream_server.http.openai.response_objects import encode_response_id
from support.airflow_callers import DeniedPermissions, make_token
from support.node_clients import run_node
from support.waiting import eventually

RUN_SECONDS = 60.0
QUESTION = "What is an XCom?"
ANSWER = "An XCom is a small value that a task stores for other tasks. Its return value is one, too."
LONG_QUESTION = "Explain DAG, task, operator, sensor, XCom, scheduler, executor, trigger rule, pool, asset, teardown."


@pytest.fixture(scope="module", autouse=True)
def dags(stack: DemoStack) -> None:
    """Wait until Airflow has parsed the DAGs of these tests."""
    stack.airflow.wait_for_dags(["chat_stream", "chat_fails"], ConsoleReporter())


@pytest.fixture
def client(auth_server: StreamServerProcess, token: str) -> Iterator[openai.OpenAI]:
    with client_of(auth_server, token) as client:
        yield client


def client_of(server: StreamServerProcess, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=RUN_SECONDS)


def count_runs(airflow: AirflowRestClient, dag_id: str) -> int:
    return int(airflow.request("GET", f"/dags/{dag_id}/dagRuns").json()["total_entries"])


def test_the_first_token_comes_while_the_run_is_running(client: openai.OpenAI, airflow: AirflowRestClient) -> None:
    before = count_runs(airflow, "chat_stream")
    stream = client.chat.completions.create(
        model="chat_stream",
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
        stream=True,
    )
    text, state_at_first_token = "", None
    for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if text and state_at_first_token is None:
            state_at_first_token = airflow.get_run("chat_stream", chunk.id.removeprefix("chatcmpl-"))["state"]
    assert (text, state_at_first_token) == (ANSWER, "running")
    assert count_runs(airflow, "chat_stream") == before + 1


def test_a_second_question_is_understood_by_the_history(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="chat_stream",
        messages=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": "What was that again?"},
        ],
    )
    assert completion.choices[0].message.content == ANSWER


def test_closing_the_stream_sets_the_run_to_failed(client: openai.OpenAI, airflow: AirflowRestClient) -> None:
    stream = client.chat.completions.create(
        model="chat_stream", messages=[{"role": "user", "content": LONG_QUESTION}], stream=True
    )
    chunk = next(chunk for chunk in stream if chunk.choices[0].delta.content)
    stream.close()
    run_id = chunk.id.removeprefix("chatcmpl-")
    eventually(lambda: airflow.get_run("chat_stream", run_id)["state"] == "failed", RUN_SECONDS, "the run is failed")


@pytest.mark.parametrize("streams", [True, False])
def test_a_failing_dag_raises_an_error_and_has_one_run(
    client: openai.OpenAI, airflow: AirflowRestClient, *, streams: bool
) -> None:
    before = count_runs(airflow, "chat_fails")

    def ask() -> None:
        answer = client.chat.completions.create(
            model="chat_fails", messages=[{"role": "user", "content": QUESTION}], stream=streams
        )
        for _ in answer:
            pass

    with pytest.raises(openai.APIError) as raised:
        ask()
    assert raised.value.code == "task_failed"
    assert count_runs(airflow, "chat_fails") == before + 1


def test_each_user_has_the_models_of_their_rights(
    auth_server: StreamServerProcess, airflow: AirflowRestClient, denied: DeniedPermissions
) -> None:
    denied.deny_only(half=["chat_stream"])
    with (
        client_of(auth_server, make_token("half", "admin")) as half,
        client_of(auth_server, make_token("reader", "viewer")) as reader,
    ):
        models = {model.id for model in reader.models.list()}
        assert models >= {"chat_stream", "chat_fails"}
        assert {model.id for model in half.models.list()} == models - {"chat_stream"}
        with pytest.raises(openai.NotFoundError):
            half.chat.completions.create(model="chat_stream", messages=[{"role": "user", "content": QUESTION}])
        # A viewer may read runs, and not trigger them.
        with pytest.raises(openai.PermissionDeniedError):
            reader.chat.completions.create(model="chat_stream", messages=[{"role": "user", "content": QUESTION}])


async def test_the_ai_sdk_asks_and_a_response_of_the_same_run_is_streamed_and_cancelled(
    auth_server: StreamServerProcess, token: str, airflow: AirflowRestClient
) -> None:
    api = f"{auth_server.url}/api/v2/dags/chat_stream/chat"
    async with (
        run_node("ai-chat.js", "7", api, token, "c1", "send", LONG_QUESTION) as script,
        openai.AsyncOpenAI(base_url=f"{auth_server.url}/v1", api_key=token, timeout=RUN_SECONDS) as client,
    ):
        message = (await script.next())["message"]
        while not any(part["type"] == "text" for part in message["parts"]):
            message = (await script.next())["message"]
        run_id = message["metadata"]["run_id"]
        response_id = encode_response_id(RunKey("chat_stream", run_id))
        events = await client.responses.retrieve(response_id, stream=True)
        while (await anext(events)).type != "response.output_text.delta":
            pass
        assert (await client.responses.cancel(response_id)).status == "cancelled"
        assert [event.type async for event in events][-1] == "response.failed"
        assert (await script.until("closed"))[-2]["type"] == "error"
    assert airflow.get_run("chat_stream", run_id)["state"] == "failed"


def test_a_wrong_token_is_refused(auth_server: StreamServerProcess) -> None:
    with client_of(auth_server, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_request_for_a_title_starts_no_run(client: openai.OpenAI, airflow: AirflowRestClient) -> None:
    before = count_runs(airflow, "chat_stream")
    prompt = f'### Task:\nGenerate a concise title.\n{{"title": ""}}\n<chat_history>\nUSER: {QUESTION}\n</chat_history>'
    completion = client.chat.completions.create(model="chat_stream", messages=[{"role": "user", "content": prompt}])
    assert completion.choices[0].message.content == f'{{"title":"{QUESTION}"}}'
    assert count_runs(airflow, "chat_stream") == before

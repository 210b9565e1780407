"""Automatic retries of OpenAI's client, which sends no key with them, but a count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from stream_server.journal.idempotency_keys import IdempotencyKeys
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub
from support.airflow_stub_fixtures import complete_run
from support.chat_runs import begin_answer
from support.server import RunningServer
from support.stub_callers import CallerPermissions
from support.waiting import eventually_answered, eventually_async

WHY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why?"}]


@pytest.fixture
async def client(
    auth_server: RunningServer, ada: CallerPermissions, airflow: AirflowSql
) -> AsyncIterator[openai.AsyncOpenAI]:
    await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")
    async with openai.AsyncOpenAI(
        base_url=f"{auth_server.url}/v1", api_key=ada.token, max_retries=0, timeout=15
    ) as client:
        yield client


async def ask_with_count(client: openai.AsyncOpenAI, retries: int, *, streams: bool = False) -> None:
    headers = {"x-stainless-retry-count": str(retries)}
    answer = await client.chat.completions.create(model="chat", messages=WHY, stream=streams, extra_headers=headers)
    if isinstance(answer, openai.AsyncStream):
        async for _ in answer:
            pass


async def count_runs(airflow: AirflowSql) -> int:
    return int(await airflow.connection.fetchval("SELECT count(*) FROM dag_run WHERE dag_id = 'chat'"))


async def let_time_pass(airflow: AirflowSql, seconds: float) -> None:
    """Let the claims get older."""
    await airflow.connection.execute(
        "UPDATE stream_server.claims SET expires = expires - make_interval(secs => $1)", seconds
    )


@pytest.mark.parametrize("streams", [True, False])
async def test_a_retry_whose_first_request_was_lost_is_no_retry_of_an_older_equal_question(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub, *, streams: bool
) -> None:
    stub.then = complete_run
    await ask_with_count(client, 0, streams=streams)
    query = "SELECT bool_and(expires < now() + interval '61 seconds') FROM stream_server.claims"
    await eventually_answered(lambda: airflow.connection.fetchval(query), what="the claim expires soon")
    expires = await airflow.connection.fetchval("SELECT expires FROM stream_server.claims")
    await ask_with_count(client, 1, streams=streams)
    assert await count_runs(airflow) == 1, "the response may have been lost"
    query = "SELECT expires > $1 FROM stream_server.claims"
    await eventually_answered(lambda: airflow.connection.fetchval(query, expires), what="the retry has ended")
    await let_time_pass(airflow, 61)
    await ask_with_count(client, 1, streams=streams)
    assert await count_runs(airflow) == 2


async def test_a_retry_attaches_while_the_first_answer_is_in_progress(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    first = asyncio.create_task(ask_with_count(client, 0))
    key = await begin_answer(airflow, stub, "Be")
    await let_time_pass(airflow, 3600)
    second = asyncio.create_task(ask_with_count(client, 1))
    await eventually_async(lambda: len(stub.triggers) == 2, what="the retry has come")
    await airflow.push(key, "answer", "Because")
    await asyncio.gather(first, second)
    assert await count_runs(airflow) == 1


async def test_the_claim_outlives_the_response_to_a_retry(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    requests = [asyncio.create_task(ask_with_count(client, 0, streams=True))]
    key = await begin_answer(airflow, stub, "Be")
    requests[0].cancel()
    query = "SELECT expires < now() + interval '61 seconds' FROM stream_server.claims"
    await eventually_answered(lambda: airflow.connection.fetchval(query), what="the claim expires soon")
    requests.append(asyncio.create_task(ask_with_count(client, 1, streams=True)))
    query = "SELECT expires > now() + interval '61 seconds' FROM stream_server.claims"
    await eventually_answered(lambda: airflow.connection.fetchval(query), what="the retry extends the claim")
    await let_time_pass(airflow, 61)
    requests.append(asyncio.create_task(ask_with_count(client, 2, streams=True)))
    await eventually_async(lambda: len(stub.triggers) == 3, what="the second retry has come")
    await airflow.push(key, "answer", "Because")
    await asyncio.gather(*requests[1:])
    assert await count_runs(airflow) == 1


async def test_equal_questions_at_the_same_time_start_a_run_each(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stub.then = complete_run
    await ask_with_count(client, 0)
    await asyncio.gather(*[ask_with_count(client, 0) for _ in range(8)])
    assert await count_runs(airflow) == 9


async def test_a_retry_with_another_cookie_starts_a_run_of_its_own(
    client: openai.AsyncOpenAI, airflow: AirflowSql, stub: AirflowStub
) -> None:
    stub.then = complete_run
    for cookie, count, runs in [("a=1", "0", 1), ("a=1", "1", 1), ("a=2", "1", 2)]:
        headers = {"Cookie": cookie, "x-stainless-retry-count": count}
        await client.chat.completions.create(model="chat", messages=WHY, extra_headers=headers)
        assert await airflow.connection.fetchval("SELECT count(*) FROM dag_run WHERE dag_id = 'chat'") == runs


async def test_the_late_end_of_the_first_response_does_not_shorten_the_claim_of_a_retry(
    client: openai.AsyncOpenAI,
    auth_server: RunningServer,
    airflow: AirflowSql,
    stub: AirflowStub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, limit_claim = asyncio.Event(), IdempotencyKeys.limit_claim

    async def limit_claim_and_record(*arguments: Any) -> None:
        await limit_claim(*arguments)
        ended.set()

    monkeypatch.setattr(IdempotencyKeys, "limit_claim", limit_claim_and_record)
    first = await client.chat.completions.create(
        model="chat", messages=WHY, stream=True, extra_headers={"x-stainless-retry-count": "0"}
    )
    key = await begin_answer(airflow, stub, "Be")
    second = asyncio.create_task(ask_with_count(client, 1, streams=True))
    await eventually_async(lambda: auth_server.hub.statistics().subscriptions == 2, what="the retry has a response")
    await first.close()
    await asyncio.wait_for(ended.wait(), 10)
    await let_time_pass(airflow, 61)
    third = asyncio.create_task(ask_with_count(client, 2, streams=True))
    await eventually_async(lambda: len(stub.triggers) == 3, what="the second retry has come")
    assert await eventually_async(lambda: stub.find_run(stub.triggers[2]), what="it has a run") == key
    await airflow.push(key, "answer", "Because")
    await asyncio.gather(second, third)

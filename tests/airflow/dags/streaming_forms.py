"""Each form in which a task emits output while it runs."""

from __future__ import annotations

import asyncio
import time

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, get_current_context, task

from stream_server.authoring import emit, progress, result_task

with DAG("stream_text", schedule=None):

    @result_task
    @task.stream
    def text():
        progress(0.5, "writing")
        yield "Be"
        yield "cause"

    text()

with DAG("stream_returns", schedule=None):

    @task.stream(retries=0)
    def returns():
        yield {"row": 1}
        yield "text"
        return {"rows": 1}

    returns()

with DAG("stream_async", schedule=None):

    @task.stream
    async def from_a_loop():
        for word in ("one ", "two ", "three"):
            await asyncio.sleep(0.01)
            yield word

    from_a_loop()

with DAG("stream_mapped", schedule=None):

    @task.stream
    def each(word: str):
        yield from word

    each.expand(word=["ab", "cd"])

with DAG("stream_plain", schedule=None):

    @task
    def plain() -> str:
        emit("word")
        emit({"not": "text"})
        progress(None, "nearly")
        return "done"

    plain()

with DAG("stream_operator", schedule=None):
    PythonOperator(task_id="called", python_callable=lambda: emit("word") or "done")

with DAG("stream_iterator", schedule=None):

    @task.stream
    def iterator():
        return iter(["one", "two"])

    iterator()

with DAG("stream_tokens", schedule=None, params={"tokens": 200, "per_second": 100}):

    @task.stream
    def tokens():
        params = get_current_context()["params"]
        began = time.monotonic()
        for number in range(params["tokens"]):
            time.sleep(max(0.0, began + number / params["per_second"] - time.monotonic()))
            yield {"number": number, "emitted_at": time.time()}

    tokens()

with DAG("stream_retry", schedule=None):

    @task.stream(retries=1, retry_delay=0.1)
    def half():
        tries = get_current_context()["ti"].try_number
        for number in range(10):
            if tries == 1 and number == 5:
                raise RuntimeError("half of the output was emitted")
            yield f"{tries}.{number} "

    half()

with DAG("stream_given_up", schedule=None):

    @task.stream(retries=1, retry_delay=3600)
    def never():
        yield "wrong"
        raise RuntimeError("to be tried again in an hour")

    never()

with DAG("stream_fails", schedule=None):

    @task.stream
    def fails():
        yield from ("last ", "words")
        raise RuntimeError("for good")

    fails()

with DAG("stream_plain_fails", schedule=None):

    @task
    def plain_fails() -> None:
        emit("last ")
        emit("words")
        raise RuntimeError("for good")

    plain_fails()

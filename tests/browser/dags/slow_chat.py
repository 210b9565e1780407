"""A chat whose answers are numbers, sent one by one: 20 for `count 20`; `count 20 fail` fails after them."""

from __future__ import annotations

import time

from airflow.sdk import dag, get_current_context, task, teardown

from stream_server.authoring import emit

PACE_SECONDS = 0.1


@dag(schedule=None, tags=["chat"], description="Emits numbers, one by one")
def slow_chat():
    @task
    def read() -> list[str]:
        conf = get_current_context()["dag_run"].conf
        words = conf["message"].split()
        before = len(conf["history"]) // 2
        return [f"({before} before)", *map(str, range(int(words[1]))), *words[2:]]

    @task
    def answer(words: list[str]) -> str:
        for word in words:
            if word == "fail":
                raise RuntimeError("the message contains `fail`")
            emit(f"{word} ")
            time.sleep(PACE_SECONDS)
        return " ".join(words)

    @teardown
    def clean_up() -> None:
        time.sleep(2)

    answer(read()) >> clean_up()


slow_chat()

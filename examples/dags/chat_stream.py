"""A chat about Airflow that streams its answer word by word. It needs no model and no network.

Trigger it with `{"message": "What is an XCom?", "history": []}`. The task `search` reports its `progress`. The task
`answer` is a generator under `@task.stream`: clients receive each yielded word while it runs, and the whole text is the
result of the run.
"""

from __future__ import annotations

import re
import time

from airflow.sdk import Param, dag, get_current_context, task

from stream_server.authoring import progress, result_task

GLOSSARY = {
    "DAG": "A DAG is a workflow: tasks and their order. It has no cycles, so that every run ends.",
    "DAG run": "A DAG run is one execution of a DAG, with its own configuration and its own task instances.",
    "task": "A task is one step of a DAG. Each run has an instance of it, with a state and a number of tries.",
    "operator": "An operator is a template for a task. For example, BashOperator runs a command.",
    "sensor": "A sensor is a task that waits for a condition, such as a new file, before downstream tasks run.",
    "XCom": "An XCom is a small value that a task stores for other tasks. Its return value is one, too.",
    "scheduler": "The scheduler decides which task instances may run, and passes them to the executor.",
    "executor": "The executor runs task instances: in local processes, or on workers on other hosts.",
    "trigger rule": "A trigger rule defines which upstream states let a task run; by default, success of all.",
    "pool": "A pool limits how many task instances run at the same time, across all DAGs.",
    "asset": "An asset is data that tasks update. An update can trigger DAGs.",
    "teardown": "A teardown is a task that cleans up, even after a failure.",
}
SECONDS_A_WORD = 0.03


def find_terms(text: str) -> list[str]:
    """Return the terms in a text."""
    words = text.lower()
    return [term for term in GLOSSARY if re.search(rf"\b{term.lower()}s?\b", words)]


@dag(
    schedule=None,
    catchup=False,
    tags=["example", "chat"],
    params={
        "message": Param("What is an XCom?", type="string"),
        "history": Param([], type="array"),
    },
)
def chat_stream():
    @task
    def search() -> list[str]:
        progress(0.2, "searching")
        params = get_current_context()["params"]
        previous = [turn["content"] for turn in params["history"] if turn["role"] == "user"]
        # A question without a term, such as "How many are there?", refers to the previous one.
        for question in (params["message"], *reversed(previous)):
            if terms := find_terms(question):
                return terms
        return []

    @result_task
    @task.stream
    def answer(terms: list[str]):
        progress(0.6, "writing")
        text = "\n\n".join(GLOSSARY[term] for term in terms)
        if not text:
            known = ", ".join(list(GLOSSARY)[:-1])
            text = f"I know only terms of Airflow. Ask me about one of these: {known} or teardown."
        for word in re.findall(r"\S+\s*", text):
            yield word
            time.sleep(SECONDS_A_WORD)
        progress(1.0)

    answer(search())


chat_stream()

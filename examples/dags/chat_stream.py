"""A chat that streams its answer, word by word, over a small knowledge of Airflow itself. No model, no network.

Trigger it with ``{"message": "What is an XCom?", "history": []}``. The task ``search`` says what it does by
``progress``; ``answer`` is a generator under ``@task.stream``: what it yields reaches those who watch while it runs,
and the whole text is the run's result.
"""

from __future__ import annotations

import re
import time

from airflow.sdk import Param, dag, get_current_context, task

from stream_server.authoring import progress, result_task

GLOSSARY = {
    "DAG": "A DAG is a workflow: tasks, and the order in which they may run. It has no cycles, so that it ends.",
    "DAG run": "A DAG run is one execution of a DAG, with its own configuration and its own states of the tasks.",
    "task": "A task is one step of a DAG. Each run has an instance of it, with a state and a number of tries.",
    "operator": "An operator is a template for a task: BashOperator runs a command, and so on.",
    "sensor": "A sensor is a task that waits for something, such as a file, before those behind it may run.",
    "XCom": "An XCom is a small value that a task leaves for others. What a task returns is one, too.",
    "scheduler": "The scheduler decides which task instances may run, and hands them to the executor.",
    "executor": "The executor is what runs task instances: in processes beside the scheduler, or on workers elsewhere.",
    "trigger rule": "A trigger rule says which ends of the tasks above let a task run; by default, success of all.",
    "pool": "A pool limits how many task instances run at the same time, whatever DAG they are of.",
    "asset": "An asset is data that tasks update, and whose updates can trigger DAGs.",
    "teardown": "A teardown is a task that cleans up, whatever became of the work before it.",
}
SECONDS_A_WORD = 0.03


def found_in(text: str) -> list[str]:
    """Return the terms that a text is about."""
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
        asked = [turn["content"] for turn in params["history"] if turn["role"] == "user"]
        # Who asks "and how many of them?" means what was asked about before.
        for question in (params["message"], *reversed(asked)):
            if terms := found_in(question):
                return terms
        return []

    @result_task
    @task.stream
    def answer(terms: list[str]):
        progress(0.6, "writing")
        text = "\n\n".join(GLOSSARY[term] for term in terms)
        if not text:
            known = ", ".join(list(GLOSSARY)[:-1])
            text = f"I know little beyond Airflow's own words. Ask me about one of these: {known} or teardown."
        for word in re.findall(r"\S+\s*", text):
            yield word
            time.sleep(SECONDS_A_WORD)
        progress(1.0)

    answer(search())


chat_stream()

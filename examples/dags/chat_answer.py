"""A chain of tasks whose result is available before the teardown has finished.

Trigger it with `{"question": "Why is the sky blue?"}`. The task `answer` is the only leaf apart from the teardown, so
its return value is the result of the run. stream_server sends it as soon as it is committed. In Airflow, the run
finishes only after the teardown.

The DAG is a tool of agents, too, whose output schema is:

```json output-schema
{"type": "object", "properties": {"question": {"type": "string"}, "answer": {"type": "string"}}, "required": ["answer"]}
```
"""

from __future__ import annotations

import time

from airflow.sdk import Param, dag, get_current_context, setup, task, teardown

KNOWLEDGE = {
    "sky": "Air scatters blue light more than red.",
    "sea": "Water absorbs red light more than blue.",
    "grass": "Chlorophyll absorbs most light but green.",
}


def think_time() -> None:
    """Simulate the work of a model or a search engine."""
    time.sleep(0.2)


@dag(
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["example", "tool", "tool:read-only"],
    params={
        "question": Param("Why is the sky blue?", type="string"),
        "teardown_seconds": Param(10, type="number", minimum=0),
    },
)
def chat_answer():
    @setup
    def open_session() -> str:
        return "session-1"

    @task
    def retrieve() -> list[str]:
        think_time()
        question = get_current_context()["params"]["question"].lower()
        return [fact for topic, fact in KNOWLEDGE.items() if topic in question]

    @task
    def think(facts: list[str]) -> str:
        think_time()
        return " ".join(facts) or "I do not know."

    @task
    def answer(thought: str) -> dict[str, str]:
        think_time()
        return {"question": get_current_context()["params"]["question"], "answer": thought}

    @teardown
    def close_session(session: str) -> None:
        time.sleep(get_current_context()["params"]["teardown_seconds"])

    session = open_session()
    facts = retrieve()
    answered = answer(think(facts))
    session >> facts
    answered >> close_session(session)


chat_answer()

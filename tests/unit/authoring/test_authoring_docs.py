"""The examples in `docs/authoring.md` are valid DAG files, and its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from stream_server.authoring import AuthoringError
from stream_server.authoring.result_marks import is_marked

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "authoring.md").read_text()
EXAMPLES = re.findall(r"```python\n(.+?)\n```", TEXT, re.DOTALL)

MARKED = [
    {"chat": {"fetch_answer"}, "check": {"fetch_answer"}},
    {"operators": {"date", "echo", "square"}},
    {"draft": set()},
    {
        "by_argument": {"fetch_answer"},
        "by_return": {"fetch_answer"},
        "by_name": {"fetch_answer", "fetch_answer__1"},
        "by_method": {"fetch_answer"},
        "by_function": {"fetch_answer"},
    },
    {"plain": {"fetch_more"}},
    {"chat": {"answer"}},
    {"weather": set()},
    {"chat_model": {"answer"}},
]
"""For each example: its DAGs, and the marked tasks of each."""


@pytest.mark.parametrize(("example", "expected"), list(zip(EXAMPLES, MARKED, strict=True)))
def test_example_is_a_dag_file(example: str, expected: dict[str, set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    dags: list[Any] = []
    enter = DAG.__enter__

    def record(dag: Any) -> Any:
        dags.append(dag)
        return enter(dag)

    monkeypatch.setattr(DAG, "__enter__", record)
    exec(compile(example, "docs/authoring.md", "exec"), {"__name__": "example"})
    for dag in dags:
        dag.validate()
    assert {dag.dag_id: {task.task_id for task in dag.tasks if is_marked(task)} for dag in dags} == expected


def test_docs_list_every_error() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| ", TEXT, re.MULTILINE)) - {"EmptyOperator", "returns_dag_result"} == {
        kind.__name__ for kind in AuthoringError.__subclasses__()
    }

"""Expected marks and results of each DAG in `airflow/dags/authoring_forms.py`, and DAG files with invalid marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

DAGS = Path(__file__).resolve().parents[1] / "airflow" / "dags"

PREFIX = "form_"
LONG = "answer_" + "x" * 120

RESULTS: dict[str, dict[str, Any]] = {
    "form_decorator": {"fetch": "answer"},
    "form_task_result": {"fetch": "answer", "other": {"answer": 42}},
    "form_result_from": {"answer": "answer"},
    "form_dag_result_from": {"answer": "answer"},
    "form_dag_argument": {"answer": "answer"},
    "form_dag_arguments": {"answer": "answer", "group.answer": "answer"},
    "form_returned": {"answer": "answer"},
    "form_operator": {"answer": "answer", "called": "answer"},
    "form_mapped": {"multiply": [2, 4, 6], "by_kwargs": [1], "echo": ["1", "2"]},
    "form_override": {"renamed": "answer"},
    "form_group": {"once.double": 2, "each.double": [2, 4]},
    "form_twice": {"answer": "answer", "answer__1": "answer"},
    "form_long_name": {LONG: "answer"},
    "form_other_interpreter": {"fetch": "answer"},
    "form_sensor": {"fetch": "answer"},
    "form_plain": {"answer": "answer", "by_param": "answer"},
}
"""Results of each DAG, by result task."""

TAGGED = {
    dag_id: {
        "form_long_name": set[str](),
        "form_plain": {"answer"},
    }.get(dag_id, set(results))
    for dag_id, results in RESULTS.items()
}
"""Result tasks that a tag names."""

PARAMS = {dag_id: {"form_plain": {"by_param"}}.get(dag_id, set(results)) for dag_id, results in RESULTS.items()}
"""Result tasks that their own params mark."""


def tagged_tasks(serialized: dict[str, Any]) -> set[str]:
    """Return the result tasks that the tags of a serialised DAG name."""
    tags = serialized["dag"].get("tags", [])
    return {tag.removeprefix("stream-result:") for tag in tags if tag.startswith("stream-result:")}


def tasks_marked_by_params(serialized: dict[str, Any]) -> set[str]:
    """Return the result tasks that the task-level params of a serialised DAG mark."""
    tasks = [operator["__var"] for operator in serialized["dag"]["tasks"]]
    return {
        task["task_id"]
        for task in tasks
        if dict(task.get("params", [])).get("stream_result", {}).get("default") is True
    }


class InvalidDag(NamedTuple):
    """A DAG file with invalid marks."""

    source: str
    """Source code after `HEAD`."""

    error: str
    """End of the import error that Airflow shows."""


HEAD = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG as AirflowDAG
from airflow.sdk import task, task_group
from stream_server.authoring import DAG, dag, result_from, result_task

@task
def answer():
    return "answer"

@task
def log():
    pass

@task_group
def group():
    answer()
    log()
"""

INVALID_DAGS = {
    "misspelt": InvalidDag(
        """
@dag(result_task="anser")
def chat():
    answer()
chat()
""",
        "UnknownResultTask: DAG 'chat': result task 'anser' does not exist. Did you mean 'answer'?",
    ),
    "misspelt_in_with": InvalidDag(
        """
with DAG("chat", result_task=["answer", "nothing"]):
    answer()
    log()
""",
        "UnknownResultTask: DAG 'chat': result task 'nothing' does not exist."
        " Name one of the DAG's tasks: 'answer', 'log'.",
    ),
    "misspelt_in_tag": InvalidDag(
        """
with DAG("chat", tags=["stream-result:logg"]):
    log()
""",
        "UnknownResultTask: DAG 'chat': result task 'logg' does not exist. Did you mean 'log'?",
    ),
    "too_early": InvalidDag(
        """
with AirflowDAG("chat") as made:
    result_from(made, "answer")
    answer()
""",
        "UnknownResultTask: DAG 'chat': result task 'answer' does not exist."
        " The DAG has no tasks yet: create the task first.",
    ),
    "without_group": InvalidDag(
        """
with AirflowDAG("chat") as made:
    group()
result_from(made, "answer")
""",
        "UnknownResultTask: DAG 'chat': result task 'answer' does not exist. Did you mean 'group.answer'?",
    ),
    "group_alone": InvalidDag(
        """
with DAG("chat", result_task="group") as made:
    group()
""",
        "UnknownResultTask: DAG 'chat': result task 'group' is a task group, which returns no value."
        " Name one of its tasks: 'group.answer', 'group.log'.",
    ),
    "two_opinions": InvalidDag(
        """
@dag(result_task="answer")
def chat():
    answer()
    result_task(log)()
chat()
""",
        "ContradictingMarks: DAG 'chat': result_task names 'answer', but 'log' is marked as a result task too."
        " Name all of them, result_task=['answer', 'log'], or remove a mark.",
    ),
    "two_opinions_later": InvalidDag(
        """
with DAG("chat", result_task="answer") as made:
    answer()
    log()
made.result_from("log")
""",
        "ContradictingMarks: DAG 'chat': result_task names 'answer', but 'log' is marked as a result task too."
        " Name all of them, result_task=['answer', 'log'], or remove a mark.",
    ),
    "returns_another": InvalidDag(
        """
@dag(result_task="answer")
def chat():
    answer()
    return log()
chat()
""",
        "ContradictingMarks: DAG 'chat': result_task names 'answer', but 'log' is marked as a result task too."
        " Name all of them, result_task=['answer', 'log'], or remove a mark.",
    ),
    "denied": InvalidDag(
        """
with AirflowDAG("chat"):
    result_task(answer).override(params={"stream_result": False})()
""",
        "ContradictingMarks: DAG 'chat': task 'answer' is marked as a result task, but its params have"
        " 'stream_result': False. Remove one of the two.",
    ),
    "empty": InvalidDag(
        """
with DAG("chat", result_task="nothing"):
    EmptyOperator(task_id="nothing")
""",
        "CannotAnswer: DAG 'chat': task 'nothing' cannot be a result task: EmptyOperator does nothing."
        " Mark the task that returns the result.",
    ),
    "no_push": InvalidDag(
        """
with AirflowDAG("chat"):
    @result_task
    @task(do_xcom_push=False)
    def fetch():
        return "answer"
    fetch()
""",
        "CannotAnswer: DAG 'chat': task 'fetch' cannot be a result task: it has do_xcom_push=False, so Airflow does"
        " not store its return value. Set do_xcom_push=True.",
    ),
    "no_push_by_default": InvalidDag(
        """
with AirflowDAG("chat", default_args={"do_xcom_push": False}):
    result_task(answer)()
""",
        "CannotAnswer: DAG 'chat': task 'answer' cannot be a result task: it has do_xcom_push=False, so Airflow does"
        " not store its return value. Set do_xcom_push=True.",
    ),
    "no_push_mapped": InvalidDag(
        """
with AirflowDAG("chat"):
    result_task(BashOperator.partial(task_id="echo", do_xcom_push=False).expand(bash_command=["echo 1"]))
""",
        "CannotAnswer: DAG 'chat': task 'echo' cannot be a result task: it has do_xcom_push=False, so Airflow does"
        " not store its return value. Set do_xcom_push=True.",
    ),
    "branch": InvalidDag(
        """
with AirflowDAG("chat"):
    @result_task
    @task.branch
    def choose():
        return "answer"
    choose() >> [answer(), log()]
""",
        "CannotAnswer: DAG 'chat': task 'choose' cannot be a result task: @task.branch may skip tasks, and Airflow"
        " does not store the return value of a task that skips others. Mark a task before or after it.",
    ),
    "short_circuit": InvalidDag(
        """
with DAG("chat", result_task="go_on"):
    @task.short_circuit
    def go_on():
        return False
    go_on() >> log()
""",
        "CannotAnswer: DAG 'chat': task 'go_on' cannot be a result task: @task.short_circuit may skip tasks, and"
        " Airflow does not store the return value of a task that skips others. Mark a task before or after it.",
    ),
    "no_task": InvalidDag(
        """
@result_task
def fetch():
    return "answer"
""",
        "MisplacedMark: 'fetch' cannot be a result task: it is not a task. Put @result_task on top of @task.",
    ),
    "upside_down": InvalidDag(
        """
@task
@result_task
def fetch():
    return "answer"
""",
        "MisplacedMark: 'fetch' cannot be a result task: it is not a task. Put @result_task on top of @task.",
    ),
    "on_group": InvalidDag(
        """
result_task(group)
""",
        "MisplacedMark: 'group' cannot be a result task: it is a task group, which returns no value."
        " Mark a task in it.",
    ),
    "not_mapped_yet": InvalidDag(
        """
with AirflowDAG("chat"):
    echo = BashOperator.partial(task_id="echo")
    echo.expand(bash_command=["echo 1"])
    result_task(echo)
""",
        "MisplacedMark: 'echo' cannot be a result task: it is not mapped yet. Mark the return value of .expand().",
    ),
    "part_of_a_value": InvalidDag(
        """
with AirflowDAG("chat") as made:
    result_from(made, answer()["key"])
""",
        "MisplacedMark: DAG 'chat': a value derived from the return value of 'answer' cannot be the result."
        " Mark the task itself, or a task that returns the derived value.",
    ),
    "mapped_value": InvalidDag(
        """
with AirflowDAG("chat"):
    result_task(answer().map(len))
""",
        "MisplacedMark: DAG 'chat': a value derived from the return value of 'answer' cannot be the result."
        " Mark the task itself, or a task that returns the derived value.",
    ),
    "anything": InvalidDag(
        """
result_task(42)
""",
        "MisplacedMark: 42 cannot be a result task. Mark a function decorated with @task, or an operator.",
    ),
}
"""By file name; on all versions."""

INVALID_WITH_NATIVE_MARKS = {
    "native_opinion": InvalidDag(
        """
from airflow.sdk import result

@dag(result_task="answer")
def chat():
    answer()
    result(log)()
chat()
""",
        "ContradictingMarks: DAG 'chat': result_task names 'answer', but 'log' is marked as a result task too."
        " Name all of them, result_task=['answer', 'log'], or remove a mark.",
    ),
}
"""On Airflow 3.3, which has its own marks."""

INVALID_WITH_LOOPS = {
    "loop": InvalidDag(
        """
from airflow.sdk import task_group

@dag(result_task="again.draft")
def chat():
    @task_group
    def again():
        @task
        def draft():
            return "draft"
        draft()
    again.loop(max_iterations=2)
chat()
""",
        "CannotAnswer: DAG 'chat': task 'again.draft' cannot be a result task: it is in the loop 'again', and returns a"
        " value in each iteration. Mark a task after the loop that returns the result.",
    ),
    "mapped_in_loop": InvalidDag(
        """
from airflow.sdk import task_group

@dag
def chat():
    @task_group
    def again():
        @task_group
        def inner():
            @task.result
            def draft(number):
                return number
            draft.expand(number=[1, 2])
        inner()
    again.loop(max_iterations=2)
chat()
""",
        "CannotAnswer: DAG 'chat': task 'again.inner.draft' cannot be a result task: it is in the loop 'again', and"
        " returns a value in each iteration. Mark a task after the loop that returns the result.",
    ),
}
"""On Airflow 3.4, which has task loops."""


def write_invalid_dags(folder: Path, *tables: dict[str, InvalidDag]) -> None:
    """Write DAG files into a folder."""
    for table in tables:
        for name, broken in table.items():
            (folder / f"{name}.py").write_text(f"{HEAD}{broken.source}")

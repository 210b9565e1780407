"""How a task is marked as one that answers, so that the mark reaches Airflow's database.

The mark is a task-level param, which Airflow serialises in all versions from 3.0 on, however long the task's name is
(`serialized_dag.data`, `dag.tasks[].__var.params`). Two more make it visible: a tag of the DAG, unless the name is too
long for one, and a line in the task's documentation. On Airflow 3.3 its own mark is set too: it is not serialised, but
marks the XComs (`xcom.dag_result`) and decides what Airflow's own `/wait` returns.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

from stream_server.authoring.errors import CannotAnswer, ContradictingMarks, UnknownResultTask

Operator: TypeAlias = Any
"""Airflow's `BaseOperator` or `MappedOperator`, which are not type-checked here."""

AirflowDag: TypeAlias = Any
"""Airflow's `DAG`, or ours."""

RESULT_PARAM = "stream_result"
"""The task-level param that marks its task where it is true."""

TAG_PREFIX = "stream-result:"
"""A tag of the DAG that begins so goes on with the name of a result task."""

MAX_TAG_LENGTH = 100
"""Longest tag, in characters (`airflow.sdk.definitions.dag.TAG_MAX_LEN`, and the column `dag_tag.name`)."""

DOC_NOTE = "**Result task**: what it returns answers whoever waits for this DAG (stream_server)."
"""What a marked task's documentation ends with."""

MAX_LISTED_TASKS = 20
"""How many tasks an error names at most."""


def mark_result_task(operator: Operator) -> None:
    """Mark a task of an Airflow DAG as one that answers; a second time changes nothing.

    Raises:
        CannotAnswer: It never returns a value.
        ContradictingMarks: Its own params say that it does not answer.
    """
    task_id, dag = operator.task_id, dag_of(operator)
    if reason := why_no_result(operator):
        raise CannotAnswer(f"{error_prefix(dag)}task {task_id!r} cannot be a result task: {reason}")
    if operator.params.get(RESULT_PARAM, True) is not True:
        raise ContradictingMarks(
            f"{error_prefix(dag)}task {task_id!r} is marked as a result task, but its params have"
            f" {RESULT_PARAM!r}: {operator.params[RESULT_PARAM]!r}. Remove one of the two."
        )
    if RESULT_PARAM not in operator.params:
        operator.params[RESULT_PARAM] = True
        _add_doc_note(operator)
    if hasattr(operator, "returns_dag_result"):
        operator.returns_dag_result = True
    if dag is not None and (tag := result_tag(task_id)) is not None:
        dag.tags.add(tag)


def is_marked(operator: Operator) -> bool:
    """Whether a task is marked, be it by Airflow's own mark."""
    return operator.params.get(RESULT_PARAM) is True or getattr(operator, "returns_dag_result", False) is True


def dag_of(operator: Operator) -> AirflowDag | None:
    """Return the DAG of a task; `None` where it has none yet."""
    return operator.dag if is_mapped(operator) or operator.has_dag() else None


def is_mapped(operator: Operator) -> bool:
    """Whether a task is a `MappedOperator`, whose properties stand in `partial_kwargs`."""
    return hasattr(operator, "partial_kwargs")


def find_task(dag: AirflowDag, task_id: str) -> Operator:
    """Return a task of an Airflow DAG by its name, the prefixes of its task groups included.

    Raises:
        UnknownResultTask: There is none; the message has those that may have been meant.
    """
    if task_id in dag.task_dict:
        return dag.task_dict[task_id]
    group = dag.task_group_dict.get(task_id)
    if group is not None:
        within = format_task_ids(child for child in dag.task_ids if child.startswith(f"{task_id}."))
        reason, remedy = "which is a task group and returns nothing", f"Name one of its tasks: {within}."
    else:
        reason, remedy = "which the DAG does not have", suggest_task(task_id, dag.task_ids)
    raise UnknownResultTask(f"{error_prefix(dag)}the result is to come from {task_id!r}, {reason}. {remedy}")


def why_no_result(operator: Operator) -> str | None:
    """Return why a task never returns a value, and the remedy; `None` where it can.

    Sensors can (`PokeReturnValue`), and so can setups and teardowns.
    """
    mapped = is_mapped(operator)
    pushes = operator.partial_kwargs.get("do_xcom_push", True) if mapped else operator.do_xcom_push
    if operator.inherits_from_empty_operator:
        return f"{operator.task_type} does nothing. Mark the task that returns the result."
    if not pushes:
        return "it has do_xcom_push=False, so that Airflow does not store what it returns. Set do_xcom_push=True."
    # `SkipMixin` raises `DownstreamTasksSkipped` out of `execute`, unless it runs with a map index.
    if operator.inherits_from_skipmixin and not mapped and operator.get_closest_mapped_task_group() is None:
        return (
            f"{operator.operator_name} chooses what to skip, and Airflow does not store what such a task returns where"
            " it skips another. Mark a task before or behind it."
        )
    return None


def result_tag(task_id: str) -> str | None:
    """Return the tag that names a result task; `None` where it would be too long."""
    tag = f"{TAG_PREFIX}{task_id}"
    return tag if len(tag) <= MAX_TAG_LENGTH else None


def tagged_task_ids(tags: Iterable[str]) -> list[str]:
    """Return the names of the result tasks that tags tell, sorted."""
    return sorted(tag.removeprefix(TAG_PREFIX) for tag in tags if tag.startswith(TAG_PREFIX))


def suggest_task(task_id: str, known: Collection[str]) -> str:
    """Return a sentence that helps somebody who named an unknown task."""
    last = task_id.rpartition(".")[2]
    grouped = [each for each in known if each.rpartition(".")[2] == last]
    if meant := grouped or difflib.get_close_matches(task_id, known):
        return f"Did you mean {' or '.join(map(repr, meant))}?"
    return (
        f"Name one of its tasks: {format_task_ids(known)}."
        if known
        else "It has no tasks yet: name it behind its task."
    )


def format_task_ids(task_ids: Iterable[str]) -> str:
    """Return names as text, and as many as anybody would read."""
    names = [repr(task_id) for task_id in task_ids]
    return ", ".join(names[:MAX_LISTED_TASKS]) + (", …" if len(names) > MAX_LISTED_TASKS else "")


def error_prefix(dag: AirflowDag | None) -> str:
    """Return how an error begins."""
    return "" if dag is None else f"DAG {dag.dag_id!r}: "


def _add_doc_note(operator: Operator) -> None:
    text = f"{operator.doc_md}\n\n{DOC_NOTE}" if operator.doc_md else DOC_NOTE
    if is_mapped(operator):
        operator.partial_kwargs["doc_md"] = text
    else:
        operator.doc_md = text

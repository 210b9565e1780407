"""Mark a task as a result task in a form that reaches Airflow's database.

The mark is a task-level param. Airflow serialises it in all versions from 3.0 on, for task IDs of any length
(`serialized_dag.data`, `dag.tasks[].__var.params`). A tag of the DAG and a line in the task's documentation make the
mark visible; the tag is left out if the task ID is too long. On Airflow 3.3 its own mark `returns_dag_result` is set,
too. It is not serialised, but it marks the XComs (`xcom.dag_result`) and decides what Airflow's own `/wait` returns.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

from stream_server.authoring.errors import CannotAnswer, ContradictingMarks, UnknownResultTask

Operator: TypeAlias = Any
"""Airflow's `BaseOperator` or `MappedOperator`, which are not type-checked here."""

AirflowDag: TypeAlias = Any
"""Airflow's `DAG`, or that of this package."""

RESULT_PARAM = "stream_result"
"""Task-level param; `True` marks the task."""

TAG_PREFIX = "stream-result:"
"""Prefix of DAG tags; the rest of the tag is the ID of a result task."""

MAX_TAG_LENGTH = 100
"""Longest tag in characters (`airflow.sdk.definitions.dag.TAG_MAX_LEN`, and the column `dag_tag.name`)."""

DOC_NOTE = "**Result task**: its return value is the result of the DAG run (stream_server)."
"""Last paragraph of a marked task's documentation."""

MAX_LISTED_TASKS = 20
"""Most tasks that an error text lists."""


def mark_result_task(operator: Operator) -> None:
    """Mark a task as a result task. Idempotent.

    Raises:
        CannotAnswer: The task never returns a value.
        ContradictingMarks: The task's params have `stream_result` set to false.
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
    """Whether a task is marked, by this package or by Airflow's own mark."""
    return operator.params.get(RESULT_PARAM) is True or getattr(operator, "returns_dag_result", False) is True


def dag_of(operator: Operator) -> AirflowDag | None:
    """Return the DAG of a task; `None` if it has none yet."""
    return operator.dag if is_mapped(operator) or operator.has_dag() else None


def is_mapped(operator: Operator) -> bool:
    """Whether a task is a `MappedOperator`, which keeps its properties in `partial_kwargs`."""
    return hasattr(operator, "partial_kwargs")


def find_task(dag: AirflowDag, task_id: str) -> Operator:
    """Return a task of a DAG by its ID, with the prefixes of its task groups.

    Raises:
        UnknownResultTask: The DAG has no such task. The text suggests similar ones.
    """
    if task_id in dag.task_dict:
        return dag.task_dict[task_id]
    group = dag.task_group_dict.get(task_id)
    if group is not None:
        children = format_task_ids(child for child in dag.task_ids if child.startswith(f"{task_id}."))
        reason, remedy = "is a task group, which returns no value", f"Name one of its tasks: {children}."
    else:
        reason, remedy = "does not exist", suggest_task(task_id, dag.task_ids)
    raise UnknownResultTask(f"{error_prefix(dag)}result task {task_id!r} {reason}. {remedy}")


def why_no_result(operator: Operator) -> str | None:
    """Return why a task never returns a value, with the remedy; `None` if it can return one.

    Sensors can return one (`PokeReturnValue`), and so can setups and teardowns.
    """
    mapped = is_mapped(operator)
    pushes = operator.partial_kwargs.get("do_xcom_push", True) if mapped else operator.do_xcom_push
    if operator.inherits_from_empty_operator:
        return f"{operator.task_type} does nothing. Mark the task that returns the result."
    if loop_id := _enclosing_loop(operator):
        return (
            f"it is in the loop {loop_id!r}, and returns a value in each iteration. Mark a task after the loop that"
            " returns the result."
        )
    if not pushes:
        return "it has do_xcom_push=False, so Airflow does not store its return value. Set do_xcom_push=True."
    # `SkipMixin` raises `DownstreamTasksSkipped` out of `execute`, unless it runs with a map index.
    if operator.inherits_from_skipmixin and not mapped and operator.get_closest_mapped_task_group() is None:
        return (
            f"{operator.operator_name} may skip tasks, and Airflow does not store the return value of a task that skips"
            " others. Mark a task before or after it."
        )
    return None


def _enclosing_loop(operator: Operator) -> str | None:
    """Return the task loop (Airflow 3.4) around a task. While its function runs, a loop has no gate yet."""
    group = getattr(operator, "task_group", None)
    while group is not None:
        if hasattr(group, "max_iterations"):
            return str(group.group_id)
        group = group.parent_group
    return None


def result_tag(task_id: str) -> str | None:
    """Return the tag that names a result task; `None` if it would be too long."""
    tag = f"{TAG_PREFIX}{task_id}"
    return tag if len(tag) <= MAX_TAG_LENGTH else None


def tagged_task_ids(tags: Iterable[str]) -> list[str]:
    """Return the task IDs in result tags, sorted."""
    return sorted(tag.removeprefix(TAG_PREFIX) for tag in tags if tag.startswith(TAG_PREFIX))


def suggest_task(task_id: str, known: Collection[str]) -> str:
    """Return a hint for an unknown task ID, as a sentence."""
    last = task_id.rpartition(".")[2]
    same_last_part = [known_id for known_id in known if known_id.rpartition(".")[2] == last]
    if similar := same_last_part or difflib.get_close_matches(task_id, known):
        return f"Did you mean {' or '.join(map(repr, similar))}?"
    if known:
        return f"Name one of the DAG's tasks: {format_task_ids(known)}."
    return "The DAG has no tasks yet: create the task first."


def format_task_ids(task_ids: Iterable[str]) -> str:
    """Return task IDs as text, shortened after `MAX_LISTED_TASKS`."""
    names = [repr(task_id) for task_id in task_ids]
    return ", ".join(names[:MAX_LISTED_TASKS]) + (", …" if len(names) > MAX_LISTED_TASKS else "")


def error_prefix(dag: AirflowDag | None) -> str:
    """Return the start of an error text: the DAG, if it is known."""
    return "" if dag is None else f"DAG {dag.dag_id!r}: "


def _add_doc_note(operator: Operator) -> None:
    text = f"{operator.doc_md}\n\n{DOC_NOTE}" if operator.doc_md else DOC_NOTE
    if is_mapped(operator):
        operator.partial_kwargs["doc_md"] = text
    else:
        operator.doc_md = text

"""The right outcome of a run, evaluated from Airflow's tables alone, by the outcome rules.

It predicts nothing: an outcome is certain only because Airflow has written it. It takes the structure of the DAG from
Airflow's own classes, and shares no code with `stream_server.domain`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

from airflow.exceptions import AirflowException
from airflow.models.expandinput import NotFullyPopulated
from airflow.serialization.definitions.mappedoperator import get_mapped_ti_count
from sqlalchemy.orm import Session

from support.outcome_airflow import find_loop
from support.outcome_tables import InstanceRow, Tables

FAILED = frozenset({"failed", "upstream_failed", "removed"})
"""States of a result task that are a failure of the answer."""

FINISHED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})

ON_FAILURE_ONLY = frozenset({"one_failed", "all_failed"})
"""Rules of leaves that run only if something failed."""

Kind = Literal["result", "failure", "none", "pending"]


class Outcome(NamedTuple):
    """What a caller receives."""

    kind: Kind
    results: Mapping[str, Any] = {}
    map_indexes: Mapping[str, list[int]] = {}
    """The indexes of the values of mapped tasks; of those without a gap, a frame may leave them out."""

    reasons: frozenset[str] = frozenset()
    """Reasons that are right for the outcome `none`."""

    task_id: str | None = None
    """The task of the reason `task_skipped`."""


PENDING = Outcome("pending")


@dataclass(frozen=True)
class Question:
    """What is asked of a run, and what is true of it although the tables do not show it."""

    named: tuple[str, ...] = ()
    """Tasks that the caller names."""

    earlier_marks: Mapping[str, bool] | None = None
    """Which tasks an earlier run showed with or without Airflow 3.3's own mark."""

    is_interrupted: bool = False
    """Whether the run was ended by a timeout or by a person since it last started."""


class _Answer(NamedTuple):
    """The state of one result task."""

    state: Literal["value", "failed", "upstream_failed", "skipped", "waiting"]
    value: Any = None
    indexes: list[int] | None = None
    may_be_empty: bool = False
    """Whether a skipped task may also count as mapped over nothing, or an empty list as a skip."""

    def alternatives(self) -> list[_Answer]:
        """Return this answer, and the other one that the tables leave open."""
        if not self.may_be_empty:
            return [self]
        return [self, _Answer("skipped") if self.state == "value" else _Answer("value", [], [])]


class Oracle:
    """Judges one moment of a run.

    Args:
        dag: The structure that the run has taken up, as Airflow deserialises it.
        tables: The run.
        session: For Airflow's own count of mapped instances.
    """

    def __init__(self, dag: Any, tables: Tables, session: Session) -> None:
        self._dag = dag
        self._tables = tables
        self._session = session
        self._of_task: dict[str, dict[int, InstanceRow]] = {}
        for (task_id, map_index), row in tables.instances.items():
            self._of_task.setdefault(task_id, {})[map_index] = row

    def shows_native_marks(self, question: Question) -> bool:
        """Whether Airflow 3.3's own marks select the result tasks, as far as they are known."""
        return not question.named and not self._authors_marks() and bool(self._native_marks(question))

    def result_tasks(self, question: Question) -> tuple[str, ...]:
        """Return the result tasks (rules 1 and 6)."""
        if question.named:
            return question.named
        marked = self._authors_marks() or self._native_marks(question)
        if marked:
            return tuple(sorted(marked))
        leaf = self.only_leaf()
        return () if leaf is None else (leaf,)

    def judge(self, question: Question) -> list[Outcome]:
        """Return the outcomes that are right now; several where the tables leave open what happened."""
        state = self._tables.run.state
        tasks = self.result_tasks(question)
        if not tasks:
            return [self._judge_without_result_task(state)]
        answers = {task_id: self._answer(task_id) for task_id in tasks}
        if question.is_interrupted:
            answers = {task_id: self._admit_empty(task_id, answer) for task_id, answer in answers.items()}
        states = [answer.state for answer in answers.values()]
        if "failed" in states:
            return [Outcome("failure")]
        if "upstream_failed" in states:
            # A task that is yet to decide to skip it overwrites this state (`ti_skip_downstream`).
            return [Outcome("failure"), PENDING]
        if self._may_have_failed_mark(state, question):
            return [Outcome("failure"), self._judge_answers(tasks, answers, state, question)]
        found = [self._judge_answers(tasks, answers, state, question)]
        if found[0].kind == "result" and self._may_show_mark(state, question):
            found.append(PENDING)
        if self._may_be_interrupted(answers, state, question):
            ended = frozenset({"run_ended", "task_skipped"})
            found.append(Outcome("none", reasons=ended, task_id=tasks[0]) if state == "success" else Outcome("failure"))
            found += [PENDING] if state not in {"success", "failed"} else []
        alternatives = [[(task_id, one) for one in answer.alternatives()] for task_id, answer in answers.items()]
        found += [self._judge_answers(tasks, dict(chosen), state, question) for chosen in product(*alternatives)]
        return found

    def values(self, question: Question) -> dict[str, Any]:
        """Return the values that result tasks have now. The instances that wait may be certain to be skipped."""
        found: dict[str, Any] = {}
        for task_id in self.result_tasks(question):
            answer = self._answer(task_id)
            rows = sorted(self._of_task.get(task_id, {}).items())
            values = [
                row.value for index, row in rows if index >= 0 and (row.has_current_value or row.state == "success")
            ]
            if answer.state == "waiting" and self._may_iterate(task_id) and rows[0][1].has_current_value:
                # The gate of the loop may be certain to be skipped.
                found[task_id] = rows[0][1].value
            elif answer.state == "value" or (answer.state == "waiting" and values):
                found[task_id] = answer.value if answer.state == "value" else values
        return found

    def is_settled(self, question: Question) -> bool:
        """Whether no result task runs, so that none can retract a value."""
        return not any(
            row.state == "running"
            for task_id in self.result_tasks(question)
            for row in self._of_task.get(task_id, {}).values()
        )

    def is_certain_to_fail(self) -> bool:
        """Whether a leaf that decides the state of the run has failed (`DagRun._tis_for_dagrun_state`)."""
        return any(
            row.state == "failed" or (row.state == "upstream_failed" and not self._may_be_skipped(task_id))
            for task_id in self._deciding_leaves()
            for row in self._of_task.get(task_id, {}).values()
        )

    def _may_be_skipped(self, task_id: str) -> bool:
        """Whether a task may decide later to skip one that did not run, or `fail_fast` may."""
        if self._tables.run.state in {"success", "failed"}:
            return False
        above = self._dag.get_task(task_id).get_flat_relative_ids(upstream=True) if self._dag.has_task(task_id) else ()
        deciders = [one for one in above if self._dag.get_task(one).inherits_from_skipmixin]
        unfinished = {one for (one, _), row in self._tables.instances.items() if row.state not in FINISHED}
        return bool(unfinished & set(deciders)) or bool(self._dag.fail_fast and unfinished)

    def only_leaf(self) -> str | None:
        """Return the implicit result task (rule 1)."""
        left = {task.task_id for task in self._dag.tasks if not task.is_teardown}
        while True:
            leaves = {one for one in left if not (self._dag.get_task(one).downstream_task_ids & left)}
            removed = {one for one in leaves if self._is_no_answer(self._dag.get_task(one))}
            if not removed:
                return next(iter(leaves)) if len(leaves) == 1 else None
            left -= removed

    @staticmethod
    def _is_no_answer(task: Any) -> bool:
        rule = str(getattr(task.trigger_rule, "value", task.trigger_rule))
        is_gate = task.task_type == "LoopGateOperator"
        return task.inherits_from_empty_operator or is_gate or not pushes(task) or rule in ON_FAILURE_ONLY

    def _authors_marks(self) -> set[str]:
        return {task.task_id for task in self._dag.tasks if is_marked(task)}

    def _native_marks(self, question: Question) -> set[str]:
        known = dict(question.earlier_marks or {})
        for task_id, rows in self._of_task.items():
            shown = [row.dag_result for row in rows.values() if row.has_current_value]
            if shown:
                known[task_id] = any(shown)
        earlier = question.earlier_marks or {}
        # No result waits for a teardown, so its mark counts only if an earlier run showed it.
        return {
            one for one, is_marked in known.items() if is_marked and (earlier.get(one) or not self._is_teardown(one))
        }

    def _is_teardown(self, task_id: str) -> bool:
        return bool(self._dag.has_task(task_id) and self._dag.get_task(task_id).is_teardown)

    def _may_show_mark(self, state: str, question: Question) -> bool:
        """Whether an unfinished task may show Airflow's own mark, so that the only leaf is not the result task."""
        if question.named or self._authors_marks() or self._native_marks(question) or state in {"success", "failed"}:
            return False
        return any(row.state not in FINISHED for row in self._tables.instances.values())

    def _may_have_failed_mark(self, state: str, question: Question) -> bool:
        """Whether a task that failed may bear Airflow's own mark, which only its return value would show (rule 6)."""
        if not self.shows_native_marks(question) or (state != "failed" and not self.is_certain_to_fail()):
            return False
        return not {task.task_id for task in self._dag.tasks} <= (question.earlier_marks or {}).keys()

    def _judge_without_result_task(self, state: str) -> Outcome:
        if state == "failed" or (state != "success" and self.is_certain_to_fail()):
            return Outcome("failure")
        return Outcome("none", reasons=frozenset({"no_result_task"})) if state == "success" else PENDING

    def _judge_answers(
        self, tasks: Collection[str], answers: Mapping[str, _Answer], state: str, question: Question
    ) -> Outcome:
        """Judge result tasks of which none has failed (rules 2 to 5)."""
        states = [answer.state for answer in answers.values()]
        if "waiting" not in states and "value" in states:
            with_value = {task_id: answer for task_id, answer in answers.items() if answer.state == "value"}
            return Outcome(
                "result",
                {task_id: answer.value for task_id, answer in with_value.items()},
                {task_id: answer.indexes for task_id, answer in with_value.items() if answer.indexes is not None},
            )
        if state == "failed":
            return Outcome("failure")
        if state != "success":
            return Outcome("failure") if "waiting" not in states and self.is_certain_to_fail() else PENDING
        reasons = set()
        if "waiting" not in states:
            reasons.add("task_skipped")
        if "waiting" in states or question.is_interrupted:
            reasons.add("run_ended")
        return Outcome("none", reasons=frozenset(reasons), task_id=next(iter(tasks)))

    def _answer(self, task_id: str) -> _Answer:
        """Return the state of a result task (rules 2 and 4)."""
        rows = self._of_task.get(task_id)
        if not rows or self._may_iterate(task_id):
            return _Answer("waiting")
        if len(rows) > 1 and any(row.state != "removed" for row in rows.values()):
            # A mapping that shrinks loses the indexes beyond its length.
            rows = {index: row for index, row in rows.items() if row.state != "removed"}
        if any(row.state in FAILED for row in rows.values()):
            is_final = any(row.state in {"failed", "removed"} for row in rows.values()) or not self._may_be_skipped(
                task_id
            )
            return _Answer("failed" if is_final else "upstream_failed")
        values = {index: row for index, row in sorted(rows.items()) if row.has_current_value or row.state == "success"}
        skipped = [index for index, row in rows.items() if row.state == "skipped"]
        if len(values) + len(skipped) < len(rows) or self._is_about_to_be_removed(task_id):
            return _Answer("waiting")
        if not values:
            return self._answer_skipped(task_id, rows)
        if list(values) == [-1]:
            return _Answer("value", values[-1].value)
        return _Answer("value", [row.value for row in values.values()], list(values))

    def _may_iterate(self, task_id: str) -> bool:
        """Whether a task is in a loop whose gate may still start another iteration (Airflow 3.4)."""
        loop = find_loop(self._dag, task_id)
        if loop is None or self._tables.run.state in {"success", "failed"}:
            return False
        gate = self._of_task.get(loop.gate_task_id, {}).get(-1)
        if gate is None:
            return True
        return gate.state not in FINISHED and (gate.iteration or 0) + 1 < loop.max_iterations

    def _is_about_to_be_removed(self, task_id: str) -> bool:
        """Whether the DAG does not have a task any more: the next loop of the scheduler removes its instances."""
        return not self._dag.has_task(task_id) and self._tables.run.state not in {"success", "failed"}

    def _answer_skipped(self, task_id: str, rows: Mapping[int, InstanceRow]) -> _Answer:
        """Return whether a task that is skipped is mapped over nothing.

        When Airflow expands a task to nothing, it skips index -1 without an end date. A run that times out, or that a
        person clears and marks, can leave the same row.
        """
        if list(rows) != [-1] or not self._is_mapped_over_nothing(task_id):
            return _Answer("skipped")
        if rows[-1].end_date is not None:
            return _Answer("skipped", may_be_empty=True)
        above = self._dag.get_task(task_id).upstream_task_ids
        has_succeeded = all(row.state == "success" for (one, _), row in self._tables.instances.items() if one in above)
        # Values of which some failed may be none, too. By the rules that is no empty list.
        return _Answer("value", [], [], may_be_empty=self._tables.run.state == "failed" or not has_succeeded)

    def _may_be_interrupted(self, answers: Mapping[str, _Answer], state: str, question: Question) -> bool:
        """Whether a result task may have been ended from outside, so that its skip or its null is no answer (rule 5).

        A timeout, a person who marks the run, and `fail_fast` skip what waits. Marking a run also sets what runs to its
        state. A person who marks a task as a success after the run leaves the same row.
        """
        fails_fast = bool(self._dag.fail_fast)
        if state not in {"success", "failed"} and not fails_fast:
            return False
        if (question.is_interrupted or fails_fast) and any(
            row.state == "skipped" for task_id in answers for row in self._of_task.get(task_id, {}).values()
        ):
            return True
        end = self._tables.run.end_date
        return any(
            row.state == "success" and row.value_at is None and end and row.end_date and row.end_date >= end
            for task_id in answers
            for row in self._of_task.get(task_id, {}).values()
        )

    def _admit_empty(self, task_id: str, answer: _Answer) -> _Answer:
        """Return an answer that may also be an empty list, after a timeout.

        The server does not read what a task is mapped over. A timeout leaves the row of a task that is mapped over
        nothing; a clear of only the tasks above can then make it look like one.
        """
        row = self._of_task.get(task_id, {}).get(-1)
        is_undated = answer.state == "skipped" and row is not None and row.end_date is None
        return answer._replace(may_be_empty=True) if is_undated else answer

    def _is_mapped_over_nothing(self, task_id: str) -> bool:
        if not self._dag.has_task(task_id):
            return False
        task = self._dag.get_task(task_id)
        if not task.is_mapped and task.get_closest_mapped_task_group() is None:
            return False
        try:
            return bool(get_mapped_ti_count(task, "run", session=self._session) == 0)
        except (NotFullyPopulated, AirflowException):
            return False

    def _deciding_leaves(self) -> list[str]:
        def is_ignored(task: Any) -> bool:
            return bool(task.is_teardown and not task.on_failure_fail_dagrun)

        leaves = [
            task.task_id
            for task in self._dag.tasks
            if not is_ignored(task) and all(is_ignored(self._dag.get_task(one)) for one in task.downstream_task_ids)
        ]
        return leaves or [task.task_id for task in self._dag.tasks if not task.downstream_task_ids]


def pushes(task: Any) -> bool:
    """Whether a task stores what it returns."""
    if hasattr(task, "partial_kwargs"):
        return bool(task.partial_kwargs.get("do_xcom_push", True))
    return bool(getattr(task, "do_xcom_push", True))


def is_marked(task: Any) -> bool:
    """Whether the author marked a task as a result task, as far as the DAG shows it."""
    if getattr(task, "returns_dag_result", False):
        return True
    params = task.partial_kwargs.get("params") if hasattr(task, "partial_kwargs") else task.params
    return dict(params or {}).get("stream_result") is True

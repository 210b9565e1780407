"""Random DAGs, made with Airflow's own SDK: every trigger rule, setups and teardowns, groups, mapping, branches."""

from __future__ import annotations

import random
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.python import BranchPythonOperator, ShortCircuitOperator
from airflow.sdk import DAG, BaseOperator, TaskGroup, task_group
from airflow.sdk.definitions._internal.expandinput import DictOfListsExpandInput
from airflow.sdk.definitions.taskgroup import MappedTaskGroup
from typing_extensions import override

DAG_ID = "random"

RESULT_PARAM = "stream_result"
"""Param that marks a task as a result task."""

HAS_LOOPS = find_spec("airflow.sdk.definitions.loop") is not None
"""Whether there are task loops (Airflow 3.4)."""

LOOP_RULES = ["all_success", "all_success", "all_done", "none_failed", "none_skipped"]
"""Rules in loops: those that wait for all, so that an iteration has ended when its gate runs."""

RULES = [
    "all_done",
    "all_done_min_one_success",
    "always",
    "none_failed",
    "none_failed_min_one_success",
    "none_skipped",
    "one_done",
    "one_success",
]
"""All rules except the default (of half of the tasks), the rule of teardowns, and those below."""

RACING_RULES = ["one_success", "one_failed", "one_done", "none_failed_min_one_success"]
"""Rules that may be met before it is known how often a task is run, and of which versions differ in mapped groups."""

FAILURE_RULES = ["all_failed", "all_skipped", "one_failed"]
"""Rules that run a task because others failed or were skipped. Half of the DAGs have them."""


def is_enough() -> bool:
    """Stand for the decision of a gate, which the test makes."""
    return True


class ScriptedTask(BaseOperator):  # type: ignore[misc]
    """A task whose final state the test sets."""

    def __init__(self, *, value: object = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value


class DagMaker:
    """Makes one DAG.

    Args:
        rng: Makes all choices.
        branching: Whether to include what cannot be predicted: tasks that branch and short-circuit, rules that may be
            met before it is known how often a task runs, and mappings over mappings.
    """

    def __init__(self, rng: random.Random, *, branching: bool) -> None:
        self._rng = rng
        self._branching = branching
        self._tasks: list[Any] = []
        self._looped: list[Any] = []
        """The tasks in loops."""

        self._fail_fast = rng.random() < 0.08
        self._rules = RULES + (FAILURE_RULES if rng.random() < 0.5 else [])
        self._common = {"retry_delay": timedelta(0), "retries": 3}

    def make(self) -> DAG:
        """Return a DAG that Airflow accepts."""
        with DAG(DAG_ID, schedule=None, fail_fast=self._fail_fast) as dag:
            self._fill(self._rng.randint(2, 8), depth=0, mapped=False)
            self._add_setups_and_teardowns()
        self._fix_rules(dag)
        dag.validate_setup_teardown()
        dag.check_cycle()
        return dag

    def _fill(self, count: int, *, depth: int, mapped: bool) -> None:
        while count > 0:
            if depth < 2 and count > 1 and self._chance(0.3):
                inner = self._rng.randint(1, count)
                self._group(inner, depth=depth + 1, mapped=mapped)
                count -= inner
            else:
                self._connect(self._task(mapped=mapped))
                count -= 1

    def _group(self, count: int, *, depth: int, mapped: bool) -> None:
        name = f"g{len(self._tasks)}_{depth}"
        first = len(self._tasks)
        if HAS_LOOPS and not mapped and self._chance(0.4):
            self._loop(name, count)
            return
        # Airflow maps a group within a mapped one, but not a task.
        if self._chance(0.5) and (not mapped or (self._branching and self._chance(0.2))):
            values = {"value": self._values(literal=mapped)}
            group: TaskGroup = MappedTaskGroup(group_id=name, expand_input=DictOfListsExpandInput(values))
            mapped = True
        else:
            group = TaskGroup(name)
        with group:
            self._fill(count, depth=depth, mapped=mapped)
        if self._tasks[:first] and self._chance(0.3):
            self._rng.choice(self._tasks[:first]) >> group

    def _loop(self, name: str, count: int) -> None:
        """Add a task loop. It has one last task, from which its gate follows."""

        def add_tasks() -> None:
            added = [self._looped_task() for _ in range(count)]
            leaves = [task for task in added if not task.downstream_list]
            if len(leaves) > 1:
                leaves >> self._looped_task(connect=False)

        loop: Any = task_group(group_id=name)(add_tasks)
        loop.loop(max_iterations=self._rng.choice((1, 2, 2, 3)), until=is_enough)

    def _looped_task(self, *, connect: bool = True) -> Any:
        rule = "all_success" if self._fail_fast else self._rng.choice(LOOP_RULES)
        options = {"task_id": f"t{len(self._tasks)}", "trigger_rule": rule, **self._common}
        kind = BranchPythonOperator if self._branching and self._chance(0.15) else None
        task = ScriptedTask(**options) if kind is None else kind(python_callable=print, **options)
        if connect:
            self._connect(task)
        else:
            self._tasks.append(task)
        self._looped.append(task)
        return task

    def _task(self, *, mapped: bool) -> Any:
        rule = "all_success" if self._fail_fast or self._chance(0.5) else self._rng.choice(self._rules)
        if mapped and rule == "always":
            rule = "all_done"  # the only one allowed where another task decides how often a group runs
        expanded = mapped or self._chance(0.25)
        if not self._branching and expanded and rule in RACING_RULES:
            rule = "all_success"
        options = {"task_id": f"t{len(self._tasks)}", "trigger_rule": rule, **self._common}
        if self._branching and self._chance(0.25):
            if self._chance(0.5):
                return BranchPythonOperator(python_callable=print, **options)
            return ShortCircuitOperator(
                python_callable=print, ignore_downstream_trigger_rules=self._chance(0.5), **options
            )
        if not mapped and expanded:
            return ScriptedTask.partial(**options).expand(value=self._values())
        return ScriptedTask(**options)

    def _values(self, *, literal: bool = False) -> Any:
        """Return what to map over: some numbers, or the value of an earlier task."""
        sources = [task for task in self._tasks if task.get_closest_mapped_task_group() is None]
        sources = [task for task in sources if task not in self._looped]
        if not self._branching:
            sources = [task for task in sources if not hasattr(task, "partial_kwargs")]
        if sources and not literal and self._chance(0.6):
            return self._rng.choice(sources).output
        return list(range(self._rng.choice([0, 1, 1, 1, 2, 2, 2, 2, 3])))

    def _connect(self, task: Any) -> None:
        """Put a task downstream of some existing tasks."""
        for above in self._tasks:
            if self._chance(0.8 / (1 + len(self._tasks) * 0.4)):
                above >> task
        self._tasks.append(task)

    def _add_setups_and_teardowns(self) -> None:
        """Make some tasks setups, and others downstream of them teardowns."""
        if not self._chance(0.45):
            return
        for _ in range(self._rng.randint(1, 2)):
            setup = self._rng.choice(self._tasks)
            if setup.is_teardown or setup.is_setup or self._is_skipper(setup) or setup in self._looped:
                continue
            group = setup.task_group if self._chance(0.7) else None
            options: dict[str, Any] = {"task_id": f"d{len(self._tasks)}", **self._common}
            teardown = ScriptedTask(task_group=group, **options)
            setup.as_setup()
            teardown.as_teardown(setups=setup, on_failure_fail_dagrun=self._chance(0.3))
            for above in self._tasks:
                if above is not setup and not above.is_teardown and self._chance(0.4):
                    above >> teardown
            if self._chance(0.3) and not self._fail_fast:
                below = ScriptedTask(
                    task_id=f"a{len(self._tasks)}", trigger_rule=self._rng.choice(self._rules), **self._common
                )
                teardown >> below
                self._tasks.append(below)
            self._tasks.append(teardown)

    def _fix_rules(self, dag: DAG) -> None:
        """Give tasks downstream of setups the only rule that Airflow allows."""
        for task in dag.tasks:
            for below in task.downstream_list if task.is_setup else ():
                if not below.is_teardown and below.trigger_rule != "all_success":
                    if hasattr(below, "partial_kwargs"):
                        below.partial_kwargs["trigger_rule"] = "all_success"
                    else:
                        below.trigger_rule = "all_success"

    @staticmethod
    def _is_skipper(task: Any) -> bool:
        return isinstance(task, BranchPythonOperator | ShortCircuitOperator)

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share


class HistoryDagMaker(DagMaker):
    """Makes a small DAG for a history: with leaves that return nothing, with marks, and with a timeout.

    Args:
        rng: Makes all choices.
        extended: Whether to add tasks at the end; the other tasks are the same as without.
    """

    def __init__(self, rng: random.Random, *, extended: bool = False) -> None:
        super().__init__(rng, branching=rng.random() < 0.6)
        self._extended = extended
        self._fail_fast = rng.random() < 0.12
        self.natively_marked: set[str] = set()

    @override
    def make(self) -> DAG:
        with DAG(DAG_ID, schedule=None, fail_fast=self._fail_fast, dagrun_timeout=timedelta(hours=1)) as dag:
            if HAS_LOOPS and self._chance(0.25):
                self._loop("loop", self._rng.randint(1, 2))
            self._fill(self._rng.randint(1, 5), depth=0, mapped=False)
            if self._chance(0.3):
                self._add_setups_and_teardowns()
            for _ in range(self._rng.choice((0, 0, 1, 1, 2))):
                self._add_leaf()
            marks = self._rng.random()
            # Neither Airflow nor `stream_server.authoring` permits a mark in a loop.
            markable = [task for task in self._tasks if task not in self._looped]
            marked = self._rng.sample(markable, min(len(markable), self._rng.choice((1, 1, 2))))
            if marks < 0.2:
                for task in marked:
                    _mark(task)
            elif marks < 0.35:
                self._mark_natively([task for task in marked if not isinstance(task, EmptyOperator)])
            if self._extended:
                for _ in range(self._rng.choice((1, 1, 2))):
                    self._connect(self._task(mapped=False))
        self._fix_rules(dag)
        dag.validate_setup_teardown()
        dag.check_cycle()
        return dag

    def _mark_natively(self, tasks: list[Any]) -> None:
        """Mark tasks with Airflow's own result mark, which 3.4 stores with the DAG."""
        self.natively_marked = {task.task_id for task in tasks}
        for task in tasks if HAS_LOOPS else ():
            task.returns_dag_result = True

    def _add_leaf(self) -> None:
        """Add a task downstream of all tasks, or of all leaves, that is no answer."""
        kind = self._rng.choice(("empty", "silent", "watcher", "plain"))
        options: dict[str, Any] = {"task_id": f"e{len(self._tasks)}", **self._common}
        if kind == "empty":
            leaf: Any = EmptyOperator(**options)
        else:
            if not self._fail_fast:
                watches = self._rng.choice(("one_failed", "one_failed", "all_failed", "all_done"))
                options["trigger_rule"] = watches if kind == "watcher" else "all_success"
            leaf = ScriptedTask(do_xcom_push=kind != "silent", **options)
        above = [task for task in self._tasks if not task.is_teardown]
        every = self._chance(0.5)
        for task in above:
            if every or not task.downstream_list:
                task >> leaf
        self._tasks.append(leaf)


def _mark(task: Any) -> None:
    """Mark a task as a result task, as `stream_server.authoring` does."""
    if hasattr(task, "partial_kwargs"):
        task.partial_kwargs["params"] = {**(task.partial_kwargs.get("params") or {}), RESULT_PARAM: True}
    else:
        task.params[RESULT_PARAM] = True

"""Which task instances were ended by the end of their run, not by the rules of the DAG.

Airflow or a person can end a run before its tasks have ended. The rows show it, for clients that watch and for those
that join later:

- A timeout sets the run to `failed`, and skips all unfinished instances without an `end_date`
  (`SchedulerJobRunner._schedule_dag_run`).
- A person who marks the run skips what waits, ends the run, and then sets what runs to the state of the run
  (`mark_tasks._set_dag_run_terminal_state`). So the `end_date` of what ran is not before that of the run.
- `fail_fast` skips what waits, before the failure itself is written (`taskinstance._stop_remaining_tasks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

from stream_server.domain.mapped_result import may_be_expanded_to_nothing
from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import TaskInstance
from stream_server.domain.trigger_rules import FAILS_WITH_UPSTREAM, MAY_SKIP_ON_SUCCESS

LONGEST_MARK = timedelta(seconds=1)
"""Longest time between the skip of what waits and the end of the run, when a person marks a run."""

Interrupted = Mapping[str, AbstractSet[int]]
"""By task, the indexes of the instances that were ended from outside."""

_NOTHING: Interrupted = {}


def find_interrupted(run: RunState) -> Interrupted:
    """Return the instances that were ended by the end of the run, or by `fail_fast`."""
    is_fail_fast = run.graph is not None and run.graph.fail_fast
    if run.is_deleted or not (run.has_ended or is_fail_fast):
        return _NOTHING
    skips = _Skips(run)
    found: dict[str, set[int]] = {}
    for task_id, instances in run.tasks.items():
        for state in ("skipped", "failed", "success") if run.has_ended else ("skipped",):
            for map_index in instances.by_state.get(state, ()):
                if skips.is_interrupted(task_id, map_index, instances[map_index]):
                    found.setdefault(task_id, set()).add(map_index)
    return found


def is_expanded_to_nothing(run: RunState, task_id: str) -> bool:
    """Whether a task is mapped over nothing, so that its result is an empty list."""
    return may_be_expanded_to_nothing(run, task_id) and not has_timed_out(run)


def has_timed_out(run: RunState) -> bool:
    """Whether the run failed by a timeout.

    It skips instances without an `end_date`. If each of them may also be mapped over nothing, the run failed by itself
    if a leaf failed.
    """
    if run.info.state != "failed":
        return False
    undated = {
        task_id
        for task_id, instances in run.tasks.items()
        if any(instances[index].end_date is None for index in instances.by_state.get("skipped", ()))
    }
    if not undated:
        return False
    if any(not may_be_expanded_to_nothing(run, task_id) for task_id in undated):
        return True
    leaves = run.graph.effective_leaves if run.graph is not None else frozenset()
    return not any(
        _FAILED & run.tasks[leaf].by_state.keys() and not _ended_with_run(run, leaf)
        for leaf in leaves
        if leaf in run.tasks
    )


_FAILED = frozenset({"failed", "upstream_failed"})


def _ended_with_run(run: RunState, task_id: str) -> bool:
    instances = run.tasks[task_id]
    failed = [instances[index] for state in _FAILED for index in instances.by_state.get(state, ())]
    return all(_ended_after(run, instance) for instance in failed)


def _ended_after(run: RunState, instance: TaskInstance) -> bool:
    """Whether an instance did not end before the run."""
    if run.info.end_date is None or instance.end_date is None:
        return False
    return instance.end_date >= run.info.end_date


def _ended_before(run: RunState, instance: TaskInstance) -> bool:
    """Whether an instance ended before the run last started."""
    started = run.info.start_date or run.info.queued_at
    return started is not None and instance.end_date is not None and instance.end_date < started


def _may_be_set_by_mark(run: RunState, instance: TaskInstance) -> bool:
    """Whether a person who marked the run may have set the state of an instance that ended after it."""
    if instance.state == "failed":
        # In a run that is a success, only a mark of the task itself has failed it.
        return run.info.state == "failed"
    return instance.state != "success" or instance.pushed is None


class _Skips:
    """Judges instances of one run that have ended."""

    def __init__(self, run: RunState) -> None:
        self._run = run
        self._has_timed_out = has_timed_out(run)
        self._explained: set[str] | None = None
        self._last_decisions: dict[str, datetime] | None = None

    def is_interrupted(self, task_id: str, map_index: int, instance: TaskInstance) -> bool:
        run = self._run
        if run.has_ended and _ended_after(run, instance):
            return _may_be_set_by_mark(run, instance)
        if instance.state != "skipped":
            return False
        if instance.end_date is None:
            return self._has_timed_out
        if (
            instance.start_date != instance.end_date
            or _ended_before(run, instance)
            or self._is_decided(task_id, instance)
        ):
            # It ran, and skipped itself, or is still as it was before a clear of other tasks, or was decided against.
            return False
        if not run.has_ended or run.info.end_date is None:
            return not self._is_explained(task_id)
        is_fail_fast = run.graph is not None and run.graph.fail_fast
        is_late = run.info.end_date - instance.end_date < LONGEST_MARK
        return (is_late or is_fail_fast) and not self._is_explained(task_id)

    def _is_decided(self, task_id: str, instance: TaskInstance) -> bool:
        """Whether a task further up that short-circuits may have skipped an instance, just before it succeeded.

        A task between them has no trace of it, if it had ended before: the other one was cleared, and ran again.
        """
        if self._last_decisions is None:
            self._last_decisions = self._find_last_decisions()
        decided, skipped = self._last_decisions.get(task_id), instance.end_date
        return decided is not None and skipped is not None and skipped <= decided

    def _find_last_decisions(self) -> dict[str, datetime]:
        """Return, by task, when the last task above it that can skip others has succeeded, while the run went on."""
        run, found = self._run, dict[str, datetime]()
        graph = run.graph
        if graph is None:
            return found
        for task_id in graph.topological_order:
            above = [found[one] for one in graph.upstream[task_id] if one in found]
            for one in graph.upstream[task_id]:
                instances = run.tasks.get(one)
                if instances is not None and graph.tasks[one].can_skip_downstream:
                    decided = [instances[index] for index in instances.by_state.get("success", ())]
                    above += [it.end_date for it in decided if it.end_date is not None and not _ended_after(run, it)]
            if above:
                found[task_id] = max(above)
        return found

    def _is_explained(self, task_id: str) -> bool:
        """Whether something upstream may have skipped a task that did not run."""
        if self._explained is None:
            self._explained = self._find_explained()
        return task_id in self._explained

    def _find_explained(self) -> set[str]:
        """Return the skipped tasks that something upstream may have skipped, and those outside of the graph."""
        graph = self._run.graph
        if graph is None:
            return set(self._run.tasks)
        explained = self._run.tasks.keys() - graph.tasks.keys()
        for task_id in graph.topological_order:
            task = graph.tasks[task_id]
            upstream = {*graph.upstream[task_id], *graph.indirect_setups.get(task_id, ())}
            if (
                task.trigger_rule in MAY_SKIP_ON_SUCCESS
                or graph.may_expand(task_id)
                or any(self._may_skip(one, task.trigger_rule, explained) for one in upstream)
            ):
                explained.add(task_id)
        return explained

    def _may_skip(self, task_id: str, rule: str, explained: AbstractSet[str]) -> bool:
        """Whether a task may have skipped one with this rule that is directly below it."""
        run = self._run
        assert run.graph is not None, "only tasks of the graph are followed"
        instances = run.tasks.get(task_id)
        if instances is None:
            return False
        states = instances.by_state.keys()
        if run.graph.tasks[task_id].can_skip_downstream and "success" in states:
            return True
        if "removed" in states or (states & _FAILED and rule not in FAILS_WITH_UPSTREAM):
            # What was removed may have been skipped before: Airflow removes it with its task, or its length.
            return True
        return any(
            task_id in explained or instances[index].start_date != instances[index].end_date
            for index in instances.by_state.get("skipped", ())
        )

"""Airflow 3.3's own result marks (`@result`): which tasks of a run bear one, and whether all of them are known.

Airflow 3.3 does not serialise this mark; only `xcom.dag_result` of a return value shows it. So it is known from the
return values of this run, and of earlier runs of the same DAG version. Moving the mark to another task makes no new
DAG version: what this run shows overrides what earlier runs showed.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from stream_server.domain.evidence import FAILED_STATES
from stream_server.domain.graph import Graph
from stream_server.domain.prediction import END_OF_STATE, UNSUCCESSFUL_STATES
from stream_server.domain.run_state import RunState
from stream_server.domain.trigger_rules import RUNS_ON_FAILURE, WAITS_FOR_ALL


def find_marked_tasks(run: RunState) -> frozenset[str]:
    """Return the tasks that are known to bear the mark; see `are_marks_complete`."""
    known = {**(run.earlier_marks or {}), **run.native_marks}
    return frozenset(task_id for task_id, is_marked in known.items() if is_marked and not _is_late(run, task_id))


def _is_late(run: RunState, task_id: str) -> bool:
    """Whether a mark may be seen after the result: none waits for a teardown whose mark no earlier run showed."""
    task = run.graph.tasks.get(task_id) if run.graph is not None else None
    return task is not None and task.is_teardown and not (run.earlier_marks or {}).get(task_id)


def uses_native_marks(run: RunState) -> bool:
    """Whether these marks select the result tasks if the caller names none. Serialised marks take precedence."""
    return not (run.graph is not None and run.graph.marked_tasks) and bool(find_marked_tasks(run))


def are_marks_complete(run: RunState) -> bool:
    """Whether no further task of the run can turn out to bear the mark.

    That needs an earlier run of the same version that has ended. Each task must have shown there or here whether it is
    marked, or must be certain not to return a value here.
    """
    if run.earlier_marks is None or run.graph is None:
        return False
    if any(
        run.earlier_marks.get(task_id, is_marked) is not is_marked for task_id, is_marked in run.native_marks.items()
    ):
        # The author has moved the mark since.
        return False
    unknown = run.graph.tasks.keys() - run.earlier_marks.keys() - run.native_marks.keys()
    return all(_returns_nothing(run, task_id) for task_id in unknown)


def may_show_mark(run: RunState, result_tasks: tuple[str, ...]) -> bool:
    """Whether a task that still runs or waits may show the mark, so that the only leaf is not the result task.

    A leaf with a rule like `one_success` can end before tasks beside it do. Before Airflow 3.3 nothing is marked.
    """
    if run.graph is None or run.graph.marked_tasks or find_marked_tasks(run) or run.has_ended:
        return False
    if not any(run.native_marks.get(task_id) is False for task_id in result_tasks):
        return False
    known = run.native_marks.keys() | (run.earlier_marks or {}).keys()
    known |= {task_id for task_id in _find_awaited(run.graph, result_tasks) if not _runs_again(run, task_id)}
    return any(
        task_id not in known
        and not (task.is_teardown or task.returns_nothing)
        and not (_has_ended(run, task_id) or _is_idle(run, run.graph, task_id))
        for task_id, task in run.graph.tasks.items()
    )


def _find_awaited(graph: Graph, task_ids: Iterable[str]) -> set[str]:
    """Return the tasks that have ended when these run, by the rules of the DAG."""
    awaited: set[str] = set()
    pending = [task_id for task_id in task_ids if task_id in graph.tasks]
    while pending:
        task_id = pending.pop()
        if graph.tasks[task_id].trigger_rule in WAITS_FOR_ALL:
            further = set(graph.upstream[task_id]) - awaited
            awaited |= further
            pending += further
    return awaited


def _has_ended(run: RunState, task_id: str) -> bool:
    instances = run.tasks.get(task_id)
    return instances is not None and instances.by_state.keys() <= END_OF_STATE.keys()


def _runs_again(run: RunState, task_id: str) -> bool:
    """Whether a task was cleared after it had run. Those below it may have been scheduled before.

    A clear keeps the number of the last try; the next one is added when the task is scheduled.
    """
    instances = run.tasks.get(task_id)
    if instances is None:
        return False
    return any(
        instances[map_index].try_number > (0 if state is None else 1)
        for state, indexes in instances.by_state.items()
        if state not in END_OF_STATE
        for map_index in indexes
    )


def _returns_nothing(run: RunState, task_id: str) -> bool:
    """Whether a task without a return value so far ends without one.

    A task that failed counts as unknown: it may be marked, and then its failure is the failure of the run's result.
    """
    if _states_of(run, task_id) <= {"success", "skipped"}:
        return True
    return run.graph is not None and _is_idle(run, run.graph, task_id)


def _is_idle(run: RunState, graph: Graph, task_id: str) -> bool:
    """Whether a watcher waits for failures, and there are none yet, so that no result waits for its mark.

    It has not run in the earlier runs either.
    """
    pending = [task_id] if task_id in graph.idle_when_all_succeed else []
    seen = set(pending)
    while pending:
        one = pending.pop()
        if not _states_of(run, one) <= {None}:
            return False
        wakes = FAILED_STATES if graph.tasks[one].trigger_rule in RUNS_ON_FAILURE else UNSUCCESSFUL_STATES
        for above in graph.upstream[one]:
            if above in graph.idle_when_all_succeed:
                pending += {above} - seen
                seen.add(above)
            elif not wakes.isdisjoint(_states_of(run, above)):
                return False
    return bool(seen)


def _states_of(run: RunState, task_id: str) -> AbstractSet[str | None]:
    instances = run.tasks.get(task_id)
    return {None} if instances is None else instances.by_state.keys()

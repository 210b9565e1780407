"""When the result of a task is complete: it needs a value of each of its instances that was not skipped."""

from __future__ import annotations

from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import TaskInstances


def count_expected_results(instances: TaskInstances) -> int:
    """Return how many instances need a result. Airflow removes indexes beyond the length of a shrunk mapping."""
    return len(instances) - len(instances.by_state.get("removed", ()))


def may_be_expanded_to_nothing(run: RunState, task_id: str) -> bool:
    """Whether the only instance of a task looks as if the task is mapped over nothing.

    Airflow then skips it, and unlike in most other cases it does not set `end_date` (`TaskMap.expand_mapped_task`). All
    that the task is mapped over has succeeded before. A run that times out can leave the same row.
    """
    instances = run.tasks.get(task_id)
    instance = instances.get(-1) if instances is not None and len(instances) == 1 else None
    if instance is None or instance.state != "skipped" or instance.end_date is not None:
        return False
    if run.graph is None or task_id not in run.graph.tasks or not run.graph.may_expand(task_id):
        return False
    return all(_has_succeeded(run, source) for source in run.graph.all_expansion_sources(task_id))


def _has_succeeded(run: RunState, task_id: str) -> bool:
    instances = run.tasks.get(task_id)
    if instances is None:
        return False
    return instances.by_state.keys() <= {"success", "removed"}

"""When the result of a task is complete: a mapped task needs a value of each of its instances."""

from __future__ import annotations

from stream_server.domain.run_state import RunState
from stream_server.domain.task_instances import TaskInstances


def count_expected_results(instances: TaskInstances) -> int:
    """Return how many instances need a result. Airflow removes indexes beyond the length of a shrunk mapping."""
    return len(instances) - len(instances.by_state.get("removed", ()))


def has_all_results(instances: TaskInstances, needs_success: bool) -> bool:
    """Whether all instances that need a result have one, and have also succeeded if `needs_success`."""
    found = instances.by_state.get("success", ()) if needs_success else instances.indexes_with_result
    return 0 < count_expected_results(instances) == len(found)


def is_expanded_to_nothing(run: RunState, task_id: str) -> bool:
    """Whether a task is mapped over nothing, so that its result is an empty list.

    Airflow then skips its only instance, and unlike in every other case it does not set `end_date`
    (`TaskMap.expand_mapped_task`).
    """
    instances = run.tasks.get(task_id)
    instance = instances.get(-1) if instances is not None and len(instances) == 1 else None
    if instance is None or instance.state != "skipped" or instance.end_date is not None:
        return False
    return run.graph is not None and task_id in run.graph.tasks and run.graph.may_expand(task_id)

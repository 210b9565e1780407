"""The task that answers if neither the caller names result tasks nor the DAG's author marks some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stream_server.domain.trigger_rules import RUNS_ON_FAILURE

if TYPE_CHECKING:
    from stream_server.domain.graph import Graph


def find_only_leaf(graph: Graph) -> str | None:
    """Return the only leaf that can answer; `None` if there are none or several.

    Teardowns are left out. So are, repeatedly, leaves that can never return a value, and leaves that run only if
    something failed.
    """
    below = {
        task.task_id: sum(not graph.tasks[one].is_teardown for one in graph.downstream(task.task_id))
        for task in graph.tasks.values()
        if not task.is_teardown
    }
    pending = [task_id for task_id, count in below.items() if not count]
    leaves: list[str] = []
    while pending:
        task_id = pending.pop()
        task = graph.tasks[task_id]
        if not task.returns_nothing and task.trigger_rule not in RUNS_ON_FAILURE:
            leaves.append(task_id)
            continue
        for upstream in graph.upstream[task_id]:
            if upstream in below:
                below[upstream] -= 1
                if not below[upstream]:
                    pending.append(upstream)
    return leaves[0] if len(leaves) == 1 else None

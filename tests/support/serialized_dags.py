"""Short notation for serialised DAGs, for tests of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from stream_server.domain.graph import Graph


class Node:
    """A task: the ids downstream of it, and further fields of its serialised form."""

    def __init__(self, *below: str, mapped_over: str | Sequence[object] | None = None, **fields: Any) -> None:
        self.below = below
        self.fields = fields
        if mapped_over is not None:
            self.fields |= {"_is_mapped": True, "expand_input": expand_input(mapped_over)}

    def serialized(self, task_id: str) -> dict[str, Any]:
        return {
            "__type": "operator",
            "__var": {"task_id": task_id, "downstream_task_ids": [*self.below], **self.fields},
        }


def setup(*below: str, **fields: Any) -> Node:
    return Node(*below, is_setup=True, **fields)


def teardown(*below: str, **fields: Any) -> Node:
    return Node(*below, **{"is_teardown": True, "trigger_rule": "all_done_setup_success", **fields})


def expand_input(values: str | Sequence[object]) -> dict[str, Any]:
    """Return a serialised expand input: the return value of a task, or a literal list."""
    reference = {"__type": "xcomref", "__var": {"task_id": values, "key": "return_value"}}
    value = {"x": reference if isinstance(values, str) else list(values)}
    return {"type": "dict-of-lists", "value": {"__type": "dict", "__var": value}}


def mapped_group(*task_ids: str, over: str | Sequence[object]) -> dict[str, Any]:
    return {"is_mapped": True, "expand_input": expand_input(over), **plain_group(*task_ids)}


def plain_group(*task_ids: str, **groups: Mapping[str, Any]) -> dict[str, Any]:
    children = {task_id: ["operator", task_id] for task_id in task_ids}
    return {"children": children | {name: ["taskgroup", group] for name, group in groups.items()}}


def dag(nodes: Mapping[str, Node], group: Mapping[str, Any] | None = None, **fields: Any) -> Graph:
    """Return the graph of a DAG, parsed from its serialised form."""
    tasks = [node.serialized(task_id) for task_id, node in nodes.items()]
    written = {"dag_id": "ask_llm", "tasks": tasks, "task_group": group or {}, **fields}
    return Graph.parse(msgspec.json.encode({"__version": 3, "dag": written}))

"""What the pages are told beside streams: recent runs, the structure of a run's DAG, and DAGs to choose from. Pure."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec

from stream_server.graph import Graph, Task
from stream_server.task_tree import TaskTree


class RunItem(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a list."""

    dag_id: str
    run_id: str
    state: str
    """State of the run."""

    run_type: str
    """How it came to be: `manual`, `scheduled`, `backfill` or `asset_triggered`."""

    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """The youngest runs that the caller may read, the youngest first."""

    runs: list[RunItem]
    """The runs."""

    cursor: str
    """From where on `/api/v2/stream` tells what has happened since."""


class DagItem(msgspec.Struct, frozen=True, kw_only=True):
    """A DAG to choose."""

    dag_id: str
    description: str | None
    """What its author says of it."""

    is_paused: bool
    """Whether its runs wait until it is unpaused."""


class DagList(msgspec.Struct, frozen=True, kw_only=True):
    """The DAGs that the caller may read, by name."""

    dags: list[DagItem]
    """The DAGs."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a page needs to know before anybody has signed in."""

    signed_in: bool
    """Whether the browser says who its visitor is, rightly or wrongly, and this server wants to know."""

    airflow_ui_url: str | None
    """Where Airflow's own pages are, if this server was told."""

    can_sign_in: bool
    """Whether this server knows an Airflow that can say who somebody is."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a DAG."""

    task_id: str
    group_id: str | None
    """The innermost task group around it."""

    operator: str
    """What kind of task it is, as Airflow's pages name it: `@task`, `BashOperator`; empty where that is not known."""

    is_mapped: bool
    """Whether it is run once for each of some values."""

    is_setup: bool
    """Whether it prepares something for others."""

    is_teardown: bool
    """Whether it cleans up, whatever became of the others."""

    is_result: bool
    """Whether it answers, as far as nobody asks for another."""


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A task group of a DAG."""

    group_id: str
    """The group."""

    parent_id: str | None
    """The group around it, if there is one."""

    is_mapped: bool
    """Whether it is run once for each of some values."""


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """That a task comes before another."""

    source: str
    """The task that comes first."""

    target: str
    """The task that comes after it."""


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """The DAG of a run, in the version that most of its tasks have."""

    dag_id: str
    run_id: str
    nodes: list[Node]
    """Each behind those before it."""

    groups: list[NodeGroup]
    """Each before those within it."""

    edges: list[Edge]
    """The order of the tasks."""


def structure(dag_id: str, run_id: str, graph: Graph, answering: Collection[str]) -> Structure:
    """Return the structure of a run.

    Args:
        dag_id: The DAG.
        run_id: The run.
        graph: The structure of the DAG.
        answering: The tasks that answer.
    """
    return Structure(
        dag_id=dag_id,
        run_id=run_id,
        nodes=[_node(graph.tasks[task_id], graph.tree, answering) for task_id in graph.order],
        groups=[
            NodeGroup(group_id=group.group_id, parent_id=group.parent, is_mapped=group.is_mapped)
            for group in graph.tree.groups
        ],
        edges=[Edge(source=task_id, target=below) for task_id in graph.order for below in graph.below(task_id)],
    )


def unknown_structure(dag_id: str, run_id: str, task_ids: Collection[str], answering: Collection[str]) -> Structure:
    """Return what is known of a run whose DAG Airflow has forgotten: its tasks, and not their order."""
    return structure(dag_id, run_id, Graph([Task(task_id) for task_id in sorted(task_ids)]), answering)


def _node(task: Task, tree: TaskTree, answering: Collection[str]) -> Node:
    return Node(
        task_id=task.task_id,
        group_id=tree.places.get(task.task_id),
        operator=task.operator,
        is_mapped=task.is_mapped,
        is_setup=task.is_setup,
        is_teardown=task.is_teardown,
        is_result=task.task_id in answering,
    )

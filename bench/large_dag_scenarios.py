"""The large DAGs of `bench.large_dags`, and the transitions of a run of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Literal, NamedTuple

from bench.bulk_rows import Instance
from stream_server.domain.graph import RESULT_PARAM
from stream_server.domain.outcome import WatchOptions
from support.serialized_dags import Node, setup, teardown

WIDTH = 10
"""Tasks that can run at the same time in the DAG with many tasks."""

FIRST_VERSION, STEPS_PER_VERSION = 10, 60
ANSWER = "answer"

REFERENCE = "3 tasks"
"""The scenario without a large DAG, to compare with."""


class Step(NamedTuple):
    """What Airflow commits at one time: the state of a task instance, its whole run with a value, or another version of
    the DAG for a task that has not begun."""

    kind: Literal["state", "value", "version"]
    task_id: str
    map_index: int = -1
    state: str | None = None


class Scenario(NamedTuple):
    """A DAG, a run of it, and what happens to the run."""

    name: str
    tasks: Mapping[str, Node]
    instances: list[Instance]
    steps: list[Step]
    options: WatchOptions

    def serialized(self, dag_id: str) -> dict[str, object]:
        """Return the DAG as Airflow serialises it."""
        tasks = [node.serialized(task_id) for task_id, node in self.tasks.items()]
        return {"__version": 3, "dag": {"dag_id": dag_id, "tasks": tasks, "task_group": {}}}


def make_scenarios(sizes: argparse.Namespace, count: int) -> Iterator[Scenario]:
    """Yield the scenarios.

    Args:
        sizes: Numbers of `tasks`, `links`, `mebibytes`, `instances` and `results`.
        count: Steps of each, if the DAG is large enough.
    """
    few = chain(["first", "second", ANSWER])
    yield _scenario(REFERENCE, few, (Step("state", "second", state=state) for state in _alternate(count)), count)
    for state, ends in (("failed", "upstream_failed"), ("skipped", "skipped")):
        layers = _layers(sizes.tasks)
        yield _scenario(f"{sizes.tasks:,} tasks, one {state}", layers, _spread(layers, state, ends), count)
    yield _scenario(f"{sizes.links} branches in a row", _branches(sizes.links), _branch_steps(sizes.links), count)
    scopes = _setups(sizes.links)
    yield _scenario(f"{sizes.links} setups and teardowns in a row", scopes, _setup_steps(sizes.links), count)
    text = "x" * (sizes.mebibytes * 1024 * 1024 // sizes.tasks)
    long = _layers(sizes.tasks, doc_md=text)
    yield _scenario(f"{sizes.mebibytes} MiB, new versions", long, _version_steps(long), count)
    yield from _mapped(sizes.instances, count)
    results = {f"result_{number:05}": Node(params={RESULT_PARAM: True}) for number in range(sizes.results)}
    open_tasks = list(results)[-count:]
    yield _scenario(
        f"{sizes.results:,} result tasks",
        results,
        (Step("value", task_id) for task_id in open_tasks),
        count,
        instances=[Instance(one, state=None if one in open_tasks else "success") for one in results],
    )


def chain(task_ids: list[str]) -> dict[str, Node]:
    """Return tasks that run one after the other."""
    return {one: Node(*task_ids[number + 1 : number + 2]) for number, one in enumerate(task_ids)}


def _scenario(
    name: str,
    tasks: Mapping[str, Node],
    steps: Iterable[Step],
    count: int,
    *,
    instances: list[Instance] | None = None,
    result_tasks: tuple[str, ...] = (),
) -> Scenario:
    options = WatchOptions(result_tasks=result_tasks, until="run")
    return Scenario(name, tasks, instances or [*map(Instance, tasks)], list(islice(steps, count)), options)


def _alternate(count: int) -> Iterator[str]:
    return ("running" if number % 2 else "queued" for number in range(count))


def _layers(count: int, **fields: str) -> dict[str, Node]:
    """Return layers of tasks, each with two of the next layer downstream, and a last task after all."""
    names = [f"t{number:05}" for number in range(count - 1)]
    tasks = {}
    for number, name in enumerate(names):
        below = {number + WIDTH, number - number % WIDTH + WIDTH + (number + 1) % WIDTH}
        downstream = [names[one] for one in sorted(below) if one < len(names)]
        tasks[name] = Node(*downstream or [ANSWER], **fields)
    tasks[ANSWER] = Node(**fields)
    return tasks


def _spread(tasks: Mapping[str, Node], state: str, ends: str) -> Iterator[Step]:
    """Yield the end of the first task in a state, then those of the others: in `ends` downstream of it."""
    reached: set[str] = set()
    for number, (task_id, node) in enumerate(tasks.items()):
        if number == 0 or task_id in reached:
            reached.update(node.below)
            yield Step("state", task_id, state=ends if number else state)
        else:
            yield Step("state", task_id, state="success")


def _branches(count: int) -> dict[str, Node]:
    tasks = {}
    for number in range(count):
        joined = f"branch_{number + 1:04}" if number + 1 < count else ANSWER
        rule = {"trigger_rule": "none_failed_min_one_success"} if number else {}
        tasks[f"branch_{number:04}"] = Node(
            f"left_{number:04}", f"right_{number:04}", _can_skip_downstream=True, **rule
        )
        tasks[f"left_{number:04}"] = tasks[f"right_{number:04}"] = Node(joined)
    tasks[ANSWER] = Node(trigger_rule="none_failed_min_one_success")
    return tasks


def _branch_steps(count: int) -> Iterator[Step]:
    for number in range(count):
        for name, state in (("branch", "success"), ("left", "skipped"), ("right", "success")):
            yield Step("state", f"{name}_{number:04}", state=state)


def _setups(count: int) -> dict[str, Node]:
    tasks: dict[str, Node] = {}
    for number in range(count):
        later = f"setup_{number + 1:04}" if number + 1 < count else ANSWER
        work, end = f"work_{number:04}", f"teardown_{number:04}"
        tasks |= {f"setup_{number:04}": setup(work, end), work: Node(end, later), end: teardown()}
    tasks[ANSWER] = Node()
    return tasks


def _setup_steps(count: int) -> Iterator[Step]:
    """Yield the failure of the first task between a setup and its teardown, and what follows from it."""
    for name, state in (("setup", "success"), ("work", "failed"), ("teardown", "success")):
        yield Step("state", f"{name}_0000", state=state)
    for number in range(1, count):
        for name in ("setup", "work", "teardown"):
            yield Step("state", f"{name}_{number:04}", state="upstream_failed")


def _version_steps(tasks: Mapping[str, Node]) -> Iterator[Step]:
    for number, task_id in enumerate(tasks):
        yield Step("state", task_id, state="success")
        if number % STEPS_PER_VERSION == FIRST_VERSION:
            yield Step("version", ANSWER)


def _mapped(length: int, count: int) -> Iterator[Scenario]:
    tasks = {"list": Node("work"), "work": Node(ANSWER, mapped_over="list"), ANSWER: Node()}
    others = [Instance("list", state="success"), Instance(ANSWER)]
    ends = (Step("state", "work", index, "success" if index else "failed") for index in range(length))
    running = [Instance("work", index, "running") for index in range(length)]
    yield _scenario(f"{length:,} instances, one failed", tasks, ends, count, instances=others + running)
    first = max(0, length - count)
    yield _scenario(
        f"{length:,} instances, their values",
        tasks,
        (Step("value", "work", index) for index in range(first, length)),
        count,
        instances=[
            *others,
            *(Instance("work", index, None if index >= first else "success") for index in range(length)),
        ],
        result_tasks=("work",),
    )

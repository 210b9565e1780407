"""The cost of evaluating a batch, for a mapped task with many instances: without failures, and after a failure.

`python -m bench.evaluate [--instances 10000]`. Its last line is JSON, in microseconds per batch of one transition.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import msgspec

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import WatchOptions, evaluate
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.task_instances import TaskInstance
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.protocol.frames import RunInfo

KEY = RunKey("bench", "run")
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
ROUNDS = 200


def make_graph(*, grouped: bool) -> Graph:
    """Return a DAG: a list, a task or a group of two mapped over it, their sum, and a log that affects no task."""
    values = {"__type": "xcomref", "__var": {"task_id": "list", "key": "return_value"}}
    expand = {"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"x": values}}}
    tasks: list[dict[str, object]] = [
        {"task_id": "list", "downstream_task_ids": ["work", "log"]},
        {"task_id": "log"},
        {"task_id": "work", "downstream_task_ids": ["check" if grouped else "sum"]},
        {"task_id": "sum"},
    ]
    children: dict[str, object] = {}
    if grouped:
        tasks.append({"task_id": "check", "downstream_task_ids": ["sum"]})
        group = {"is_mapped": True, "expand_input": expand}
        children["g"] = ["taskgroup", {**group, "children": {one: ["operator", one] for one in ("work", "check")}}]
    else:
        tasks[2] |= {"_is_mapped": True, "expand_input": expand}
    operators = [{"__type": "operator", "__var": task} for task in tasks]
    return Graph.parse(msgspec.json.encode({"dag": {"tasks": operators, "task_group": {"children": children}}}))


def make_run(graph: Graph, instances: int, *, has_failure: bool) -> RunState:
    """Return a run in which half of the instances have succeeded; if `has_failure`, the log has failed."""
    info = RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0)
    run = RunState(KEY, info, graph)
    for task_id in graph.tasks:
        if task_id in {"work", "check"}:
            for index in range(instances):
                done = "success" if task_id == "work" and index < instances // 2 else None
                run.add_instance(task_id, index, TaskInstance(done, 1))
        else:
            state = {"list": "success", "log": "failed" if has_failure else "running"}.get(task_id)
            run.add_instance(task_id, -1, TaskInstance(state, 1))
    return run


def make_batches(instances: int) -> Iterator[Transition]:
    """Yield batches in which one instance after the other succeeds."""
    for number in range(ROUNDS):
        instance = ("work", instances // 2 + number)
        yield Transition(number, number, NOW, TransitionKind.TASK, *KEY, *instance, try_number=1, state="success")


def measure(instances: int, *, grouped: bool, has_failure: bool) -> float:
    """Return the microseconds to apply and evaluate a batch, for a client that watches the mapped task."""
    run = make_run(make_graph(grouped=grouped), instances, has_failure=has_failure)
    options = WatchOptions(result_tasks=("work",))
    begun = time.perf_counter()
    for transition in make_batches(instances):
        run.apply(transition)
        evaluate(run, options)
    return (time.perf_counter() - begun) / ROUNDS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=10_000)
    instances = parser.parse_args().instances
    figures = {
        f"{name}, {outcome}": round(measure(instances, grouped=grouped, has_failure=has_failure), 1)
        for name, grouped in (("mapped task", False), ("mapped group", True))
        for outcome, has_failure in (("no failure", False), ("one failed", True))
    }
    for name, figure in figures.items():
        print(f"{name:<28} {figure:>10.1f} us")
    print(json.dumps({"instances": instances, "microseconds": figures, "misses": []}))


if __name__ == "__main__":
    main()

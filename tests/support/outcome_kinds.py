"""Kinds of events and DAG shapes that cases must contain, and whether they did.

A kind counts only if it happened: an intervention that Airflow refused does not, nor does a timeout of an ended run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

HAS_LOOPS = Version(version("apache-airflow")).release >= (3, 4)
"""Whether there are task loops. Airflow is not imported, which would configure this process."""

PREFIX = "kind "
"""Of the figure of a kind."""

FULL_SIZE = 2000
"""A check of at least this many cases must contain each kind."""

HISTORY_KINDS = (
    "timeout",
    "fail_fast stop",
    "mark run success",
    "mark run failed",
    "mark run queued",
    "mark task success",
    "mark task failed",
    "mark task skipped",
    "mark with upstream",
    "mark with downstream",
    "clear run",
    "clear run, only failed",
    "clear run, only new",
    "clear task",
    "clear one index",
    "clear with upstream",
    "clear with downstream",
    "clear on the latest version",
    "delete instance",
    "deploy",
    "version taken up during the run",
    "retry",
    "retry after a pushed value",
    "failure after a pushed value",
    "late push",
    # On Airflow 3.4, a try has values of its own.
    *(() if HAS_LOOPS else ("stale value",)),
    "restarting",
    "removed",
    "mapped over nothing",
    "branch",
    "short circuit",
    "empty end",
    "silent end",
    "watcher end",
    "teardown",
    "author's mark",
    "native mark",
    *(("loop", "another iteration") if HAS_LOOPS else ()),
)
"""Kinds of histories."""

PREDICTION_KINDS = (
    "fail_fast",
    "branching",
    "mapped task",
    "mapped group",
    "setup",
    "teardown",
    "retried",
    "skipped",
    "mapped over nothing",
    *(("loop", "another iteration") if HAS_LOOPS else ()),
)
"""Kinds of cases that only compare predictions."""


def history_kind(name: str) -> str:
    """Return the figure of a kind of histories."""
    assert name in HISTORY_KINDS, name
    return f"{PREFIX}history {name}"


def prediction_kind(name: str) -> str:
    """Return the figure of a kind of predictions."""
    assert name in PREDICTION_KINDS, name
    return f"{PREFIX}prediction {name}"


def count_kinds(figures: Mapping[str, int], kinds: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return how often each kind happened, of the kinds of cases that were checked."""
    counts = {
        "histories": {name: figures.get(history_kind(name), 0) for name in HISTORY_KINDS},
        "predictions": {name: figures.get(prediction_kind(name), 0) for name in PREDICTION_KINDS},
    }
    return {kind: counts[kind] for kind in kinds}


def find_missing_kinds(figures: Mapping[str, int], kinds: Iterable[str]) -> list[str]:
    """Return the kinds that must have happened, and did not."""
    if figures.get("cases", 0) < FULL_SIZE:
        return []
    counted = count_kinds(figures, kinds)
    return [f"{kind}: {name}" for kind, counts in counted.items() for name, count in counts.items() if not count]


def find_shapes(dag: Any) -> list[str]:
    """Return the kinds of histories that the shape of a DAG, as Airflow deserialises it, contains."""
    found: Counter[str] = Counter()
    for task in dag.tasks:
        options = task.partial_kwargs if hasattr(task, "partial_kwargs") else vars(task)
        rule = str(getattr(task.trigger_rule, "value", task.trigger_rule))
        is_end = not [one for one in task.downstream_task_ids if not dag.get_task(one).is_teardown]
        found["branch"] += "Branch" in task.task_type
        found["short circuit"] += "ShortCircuit" in task.task_type
        found["loop"] += task.task_type == "LoopGateOperator"
        found["teardown"] += bool(task.is_teardown)
        if is_end and not task.is_teardown:
            found["empty end"] += bool(task.inherits_from_empty_operator)
            found["silent end"] += options.get("do_xcom_push", True) is False
            found["watcher end"] += rule in {"one_failed", "all_failed"}
    return [name for name, count in found.items() if count]

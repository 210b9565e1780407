from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from stream_server.domain.graph import Graph
from stream_server.domain.iterations import MAX_EARLIER_ITERATIONS, Iterations
from stream_server.domain.outcome import (
    Decision,
    FailureKnown,
    NoneKnown,
    ResultKnown,
    ReturnValue,
    Undecided,
    WatchOptions,
    evaluate,
)
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.run_state import RunState
from stream_server.domain.snapshot_tasks import MAX_LISTED_INSTANCES
from stream_server.domain.task_instances import TaskInstances
from stream_server.domain.transition import OUTPUT_KEY, RETURN_VALUE_KEY, Transition, TransitionKind
from stream_server.protocol.frames import Result, RunInfo, TaskTransition
from stream_server.protocol.output_frames import Chunk
from support.builders import KEY, at

LAST = 2


def serialized_loop(**operator: object) -> str:
    """Return `start >> [draft >> check >> gate] >> publish`, with the tasks in brackets in a loop."""

    def task(task_id: str, *downstream: str) -> dict[str, object]:
        return {"__var": {"task_id": task_id, "downstream_task_ids": [*downstream], **operator}}

    loop = {"max_iterations": LAST + 1, "has_until": True, "terminal_task_id": "check", "gate_task_id": "gate"}
    inner = {"children": {"draft": ["operator", "draft"]}}
    group = {
        "loop": loop,
        "children": {"inner": ["taskgroup", inner], "check": ["operator", "check"], "gate": ["operator", "gate"]},
    }
    root = {"children": {"start": ["operator", "start"], "body": ["taskgroup", group]}}
    tasks = [
        task("start", "draft"),
        task("draft", "check"),
        task("check", "gate"),
        task("gate", "publish"),
        task("publish"),
    ]
    return json.dumps({"__version": 3, "dag": {"tasks": tasks, "task_group": root}})


GRAPH = Graph.parse(serialized_loop())
RUNNING = RunInfo(state="running", queued_at=None, start_date=at(0), end_date=None, clear_number=0)
BODY = ("draft", "check", "gate")


class LoopRun:
    """A run whose rows are applied one by one, as Airflow 3.4 writes them."""

    def __init__(self) -> None:
        self.state = RunState(KEY, RUNNING, GRAPH)
        self._seq = count(1)
        for task_id in ("start", "publish"):
            self.set_task(task_id, None, None)
        self.begin(0)
        self.set_task("start", None, "success")

    def begin(self, iteration: int) -> None:
        for task_id in BODY:
            self.set_task(task_id, iteration, None)

    def set_task(self, task_id: str, iteration: int | None, state: str | None) -> TaskTransition:
        (frame,) = self._apply(TransitionKind.TASK, task_id, iteration, state=state, try_number=1)
        assert isinstance(frame, TaskTransition)
        return frame

    def push(self, task_id: str, iteration: int | None) -> None:
        self._apply(TransitionKind.XCOM, task_id, iteration, xcom_key=RETURN_VALUE_KEY)

    def emit(self, task_id: str, iteration: int | None, index: int = 0) -> list[object]:
        body = json.dumps({"try_number": 1, "index": index, "items": [{"chunk": "x"}]})
        return [*self._apply(TransitionKind.XCOM, task_id, iteration, xcom_key=OUTPUT_KEY, body=body)]

    def complete(self, iteration: int, *, another: bool) -> None:
        """Complete an iteration. The gate's transaction creates the next one before the gate succeeds."""
        for task_id in BODY:
            self.set_task(task_id, iteration, "running")
            self.push(task_id, iteration)
            if task_id == "gate" and another:
                self.begin(iteration + 1)
            self.set_task(task_id, iteration, "success")

    def decide(self, *result_tasks: str) -> Decision:
        return evaluate(self.state, WatchOptions(result_tasks=result_tasks))

    def _apply(self, kind: TransitionKind, task_id: str, iteration: int | None, **columns: object) -> list[object]:
        seq = next(self._seq)
        row = Transition(seq, seq, at(seq), kind, *KEY, task_id, -1, iteration=iteration)
        return [*self.state.apply(row._replace(**columns))]  # type: ignore[arg-type]


def test_frames_name_the_iteration() -> None:
    run = LoopRun()
    assert run.set_task("draft", 0, "running").iteration == 0
    (chunk,) = run.emit("draft", 0)
    assert isinstance(chunk, Chunk)
    assert chunk.iteration == 0
    assert run.set_task("publish", None, None).iteration is None


def test_output_of_each_iteration_is_kept_and_only_that_of_a_repeated_one_is_retracted() -> None:
    run = LoopRun()
    run.set_task("draft", 0, "running")
    run.emit("draft", 0)
    run.complete(0, another=True)
    run.set_task("draft", 1, "running")
    assert run.emit("draft", 1)
    assert run.state.take_retraction() is None
    assert [frame.iteration for frame in run.state.output.frames] == [0, 1]

    run.set_task("draft", 1, "up_for_retry")
    assert run.state.take_retraction() == "retried"
    assert [frame.iteration for frame in run.state.output.frames] == [0]


def test_a_snapshot_lists_the_newest_iteration_last_and_no_more_than_fit() -> None:
    run = LoopRun()
    for iteration in range(MAX_LISTED_INSTANCES):
        run.complete(iteration, another=True)
    listed = [(task.iteration, task.state) for task in run.state.snapshot(()).tasks if task.task_id == "draft"]
    newest = MAX_LISTED_INSTANCES
    earlier = range(newest - MAX_EARLIER_ITERATIONS, newest)
    assert listed == [*((iteration, "success") for iteration in earlier), (newest, None)]
    assert [task.iteration for task in run.state.snapshot(()).tasks if task.task_id == "publish"] == [None]


def test_reading_the_rows_in_any_order_gives_the_newest_iteration() -> None:
    run = LoopRun()
    run.complete(0, another=True)
    read = RunState(KEY, RUNNING, GRAPH)
    rows = [(0, run.state.iterations.find("gate", 0)), (1, run.state.tasks["gate"])]
    for iteration, instances in reversed(rows):
        assert instances is not None
        read.add_instance("gate", -1, instances[-1], iteration)
    assert read.tasks["gate"][-1].state is None
    assert read.iterations.newest("gate") == 1


@pytest.mark.parametrize("task_id", ["draft", "check"])
def test_the_value_of_the_last_iteration_is_the_result_once_the_loop_has_ended(task_id: str) -> None:
    run = LoopRun()
    run.complete(0, another=True)
    assert run.decide(task_id) == Undecided()
    run.complete(1, another=False)
    decision = run.decide(task_id)
    assert isinstance(decision, ResultKnown)
    assert [version.iteration for version in decision.versions] == [1]


def test_a_value_that_is_too_large_refers_to_the_values_of_all_iterations() -> None:
    run = LoopRun()
    run.complete(0, another=False)
    tracker = OutcomeTracker(WatchOptions(result_tasks=("check",)))
    tracker.update(run.state)
    (result, *_) = tracker.add_values(run.state, ["check"], {("check", -1): ReturnValue(5_000_000, None)})
    assert isinstance(result, Result)
    assert result.references["check"].href.endswith("/taskInstances/check/xcomEntries")


def test_the_value_of_the_last_possible_iteration_is_the_result_at_once() -> None:
    run = LoopRun()
    for iteration in range(LAST):
        run.complete(iteration, another=True)
    run.set_task("draft", LAST, "running")
    run.push("draft", LAST)
    assert isinstance(run.decide("draft"), ResultKnown)


def test_a_failure_in_a_loop_is_certain_once_no_iteration_can_follow() -> None:
    run = LoopRun()
    run.complete(0, another=True)
    run.set_task("draft", 1, "running")
    assert run.decide("draft") == Undecided()
    run.set_task("draft", 1, "failed")
    for result in ("draft", "publish"):
        decision = run.decide(result)
        assert isinstance(decision, FailureKnown)
        assert (decision.task_id, decision.iteration) == ("draft", 1)


def test_no_failure_is_predicted_while_the_gate_can_open_another_iteration() -> None:
    data = json.loads(serialized_loop())
    (check,) = (task["__var"] for task in data["dag"]["tasks"] if task["__var"]["task_id"] == "check")
    check["trigger_rule"] = "all_done"
    run = LoopRun()
    run.state.graph = Graph.parse(json.dumps(data))
    run.set_task("draft", 0, "failed")
    assert run.decide("draft") == run.decide("publish") == Undecided()
    for task_id in ("check", "gate"):
        run.set_task(task_id, 0, "success")
    assert isinstance(run.decide("draft"), FailureKnown)
    assert run.decide("publish") == Undecided()


def test_a_skipped_task_in_a_loop_may_have_a_value_in_the_next_iteration() -> None:
    run = LoopRun()
    run.set_task("draft", 0, "skipped")
    assert not isinstance(run.decide("draft"), ResultKnown | NoneKnown)


def test_clearing_the_gate_opens_the_loop_again() -> None:
    run = LoopRun()
    run.complete(0, another=False)
    assert isinstance(run.decide("check"), ResultKnown)
    run.set_task("gate", 0, None)
    assert run.decide("check") == Undecided()


def test_a_transition_of_an_earlier_iteration_changes_neither_the_newest_one_nor_the_result() -> None:
    run = LoopRun()
    run.complete(0, another=True)
    run.complete(1, another=False)
    before = run.decide("check")
    assert run.set_task("check", 0, "failed").iteration == 0
    assert run.decide("check") == before
    assert not isinstance(run.decide("publish"), FailureKnown)


def test_native_marks_are_read_before_any_value_was_pushed() -> None:
    assert Graph.parse(serialized_loop(returns_dag_result=True)).marked_tasks == {"start", *BODY, "publish"}
    both = json.loads(serialized_loop(returns_dag_result=True))
    both["dag"]["tags"] = ["stream-result:start"]
    assert Graph.parse(json.dumps(both)).marked_tasks == {"start"}


def test_the_only_leaf_is_the_last_task_of_a_loop_instead_of_its_gate() -> None:
    data = json.loads(serialized_loop())
    tasks = {task["__var"]["task_id"]: task["__var"] for task in data["dag"]["tasks"]}
    tasks["gate"] |= {"task_type": "LoopGateOperator", "downstream_task_ids": []}
    data["dag"]["tasks"] = [{"__var": task} for task_id, task in tasks.items() if task_id != "publish"]
    assert Graph.parse(json.dumps(data)).only_leaf == "check"


def test_loops_are_found_around_tasks_in_nested_groups() -> None:
    loops = {task_id: GRAPH.loop_of(task_id) for task_id in GRAPH.tasks}
    assert {task_id for task_id, loop in loops.items() if loop is not None} == {*BODY}
    loop = loops["draft"]
    assert loop is not None
    assert loop == ("body", "gate", LAST + 1)


class CurrentInstances(dict[str, TaskInstances]):
    """Calls a function before and after it is read, and before it is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.before_read: Callable[[], object] = lambda: None
        self.after_read: Callable[[], object] = lambda: None
        self.before_change: Callable[[], object] = lambda: None

    def get(self, task_id: str, default: Any = None) -> Any:
        self.before_read()
        found = super().get(task_id, default)
        self.after_read()
        return found

    def __setitem__(self, task_id: str, instances: TaskInstances) -> None:
        self.before_change()
        super().__setitem__(task_id, instances)


@pytest.mark.parametrize("moment", ["before_read", "after_read"])
def test_an_iteration_is_found_while_another_thread_opens_the_next_one(moment: str) -> None:
    current = CurrentInstances()
    iterations = Iterations(current)
    first = iterations.open("draft", 0)

    def open_next() -> None:
        setattr(current, moment, lambda: None)
        iterations.open("draft", 1)

    setattr(current, moment, open_next)
    assert iterations.find("draft", 0) is first
    assert iterations.newest("draft") == 1
    assert iterations.find("draft", 1) is current["draft"]


def test_an_iteration_is_found_before_the_next_one_has_instances() -> None:
    current = CurrentInstances()
    iterations = Iterations(current)
    first = iterations.open("draft", 0)
    found = []
    current.before_change = lambda: found.append(iterations.find("draft", 0))
    iterations.open("draft", 1)
    assert found == [first]

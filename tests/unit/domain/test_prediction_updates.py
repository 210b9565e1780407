"""A prediction that is kept up to date is that of judging all tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.graph import Graph, MappedGroup, Task
from stream_server.domain.prediction import Prediction
from stream_server.domain.run_state import MAX_LATE_JUDGEMENTS, RunKey, RunState
from stream_server.domain.task_instances import TaskInstance
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.domain.trigger_rules import RULES
from stream_server.protocol.frames import RunInfo

KEY = RunKey("d", "r")
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
RUNNING = RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0)
STATES = (
    None, "scheduled", "running", "success", "failed", "upstream_failed", "skipped", "removed", "up_for_retry",
    "restarting",
)  # fmt: skip
MAX_SECONDS = 0.5
"""For what takes a few milliseconds, on a busy machine."""


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """DAGs with every rule, branches, setups, teardowns, mapped tasks and mapped groups, of up to 10 tasks."""
    names = [f"t{number}" for number in range(draw(st.integers(2, 10)))]
    first, last = sorted((draw(st.integers(0, len(names))), draw(st.integers(0, len(names)))))
    group = MappedGroup("g", frozenset(names[: draw(st.integers(0, 1))]), draw(st.integers(0, 9)) == 0)
    outer = MappedGroup("h", frozenset(), has_no_values=False)
    groups = {name: draw(st.sampled_from([(group,)] * 9 + [(group, outer)])) for name in names[first:last]}
    rarely = st.integers(0, 6).map(lambda number: number == 0)
    tasks = [
        Task(
            name,
            downstream_task_ids=draw(st.lists(st.sampled_from(names[number + 1 :] or [name]), max_size=4, unique=True))
            if number < len(names) - 1
            else [],
            is_setup=draw(rarely),
            is_teardown=draw(rarely),
            trigger_rule=draw(st.one_of(st.just("all_success"), st.sampled_from(sorted(RULES)))),
            is_mapped=draw(rarely),
            can_skip_downstream=draw(rarely),
            expanded_by=frozenset(names[:1]) if number and draw(rarely) else frozenset(),
            has_no_values=draw(rarely),
        )
        for number, name in enumerate(names)
    ]
    return Graph(tasks, groups, fail_fast=draw(rarely))


def possible(prediction: Prediction) -> object:
    return {
        task_id: {ends.value: frozenset(found) for ends, found in prediction.possible_states(task_id).items()}
        for task_id in prediction.graph.tasks
    }


def put(states: dict[str, dict[str | None, set[int]]], task_id: str, map_index: int, state: str | None) -> None:
    of_task = states.setdefault(task_id, {})
    for one in list(of_task):
        of_task[one].discard(map_index)
        if not of_task[one]:
            del of_task[one]
    if state != "deleted":
        of_task.setdefault(state, set()).add(map_index)


@given(graphs(), st.data())
def test_updated_prediction_equals_a_new_one(graph: Graph, data: st.DataObject) -> None:
    states: dict[str, dict[str | None, set[int]]] = {}
    for task_id in graph.tasks:
        expanded = graph.may_expand(task_id) and data.draw(st.booleans())
        for map_index in range(3) if expanded else (-1,):
            put(states, task_id, map_index, data.draw(st.sampled_from((None, None, None, *STATES))))
    updated = Prediction(graph, states)
    for _ in range(data.draw(st.integers(1, 6))):
        changed = data.draw(st.sets(st.sampled_from(sorted(graph.tasks)), min_size=1, max_size=3))
        for task_id in changed:
            indexes = [one for found in states.get(task_id, {}).values() for one in found] or [-1]
            if graph.may_expand(task_id):
                indexes += [0, 1]
            put(states, task_id, data.draw(st.sampled_from(indexes)), data.draw(st.sampled_from((*STATES, "deleted"))))
        updated.add_changes(changed)
        while not updated.advance(at_most=2):
            pass
        new = Prediction(graph, states)
        assert possible(updated) == possible(new)
        assert updated.failing_tasks == {task_id for task_id in graph.tasks if new.must_fail(task_id)}


@given(graphs(), st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 2), st.sampled_from(STATES)), max_size=30))
def test_run_predicts_from_its_current_states(graph: Graph, history: list[tuple[int, int, str | None]]) -> None:
    run = RunState(KEY, RUNNING, graph)
    names = sorted(graph.tasks)
    for seq, (number, map_index, state) in enumerate(history):
        task_id = names[number % len(names)]
        index = map_index if graph.may_expand(task_id) else -1
        run.apply(Transition(seq, seq, NOW, TransitionKind.TASK, *KEY, task_id, index, try_number=1, state=state))
        prediction = run.predict()
        if prediction is not None:
            states = {task_id: instances.by_state for task_id, instances in run.tasks.items()}
            assert possible(prediction) == possible(Prediction(graph, states))


def chain(number: int, **fields: object) -> Graph:
    return Graph([Task(f"t{one}", [f"t{one + 1}"] if one < number - 1 else [], **fields) for one in range(number)])  # type: ignore[arg-type]


def test_long_chain_of_tasks_that_nothing_can_skip_is_predicted() -> None:
    graph = chain(3000, trigger_rule="all_done")
    states: Mapping[str, Mapping[str | None, set[int]]] = {
        task_id: {None: {-1}} if task_id != "t0" else {"failed": {-1}} for task_id in graph.tasks
    }
    assert Prediction(graph, states).must_fail("t2999") == frozenset()


def test_layers_with_many_paths_between_them_are_predicted() -> None:
    tasks = [
        Task(f"t{layer}_{one}", [f"t{layer + 1}_{other}" for other in range(8)] if layer < 19 else ["last"],
             trigger_rule="all_done" if layer else "all_success")
        for layer in range(20) for one in range(8)
    ]  # fmt: skip
    graph = Graph([*tasks, Task("last")])
    states: dict[str, dict[str | None, set[int]]] = {task_id: {None: {-1}} for task_id in graph.tasks}
    states["t0_0"] = {"failed": {-1}}
    begun = time.monotonic()
    Prediction(graph, states)
    assert time.monotonic() - begun < MAX_SECONDS


def run_of(graph: Graph, **states: str) -> RunState:
    run = RunState(KEY, RUNNING, graph)
    for task_id in graph.tasks:
        run.add_instance(task_id, -1, TaskInstance(states.get(task_id), 1))
    return run


def test_nothing_is_predicted_while_nothing_has_failed() -> None:
    assert run_of(chain(2), t0="success").predict() is None
    assert run_of(chain(2), t0="failed").predict() is not None
    assert run_of(Graph([Task("a", ["b"]), Task("b", trigger_rule="one_failed")])).predict() is not None
    assert run_of(Graph([Task("a", is_mapped=True, has_no_values=True)])).predict() is not None


@pytest.mark.parametrize("failed", [False, True])
def test_large_dag_is_judged_before_anything_fails(failed: bool) -> None:
    run = run_of(chain(MAX_LATE_JUDGEMENTS + 1))
    run.predict()
    judged: list[str] = []
    original = Prediction._judge

    def judge(self: Prediction, plan: object) -> object:
        judged.append("one")
        return original(self, plan)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prediction, "_judge", judge)
        state = "failed" if failed else "running"
        last = f"t{MAX_LATE_JUDGEMENTS}"
        run.apply(Transition(1, 1, NOW, TransitionKind.TASK, *KEY, last, -1, try_number=1, state=state))
        prediction = run.predict()
    assert len(judged) == 1, "only the task that changed: nothing is downstream of it"
    assert (prediction is None) is not failed

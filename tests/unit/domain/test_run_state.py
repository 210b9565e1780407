from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import msgspec
import pytest
from hypothesis import given

from stream_server.domain.mapped_result import count_expected_results
from stream_server.domain.run_state import RETRACTING_STATES, RunState
from stream_server.domain.snapshot_tasks import MAX_LISTED_INSTANCES
from stream_server.domain.task_instances import TaskInstance
from stream_server.protocol.frames import RunTransition, Snapshot, TaskTransition
from support.builders import KEY, History, at, comparable_state, graph
from support.run_moves import Move, apply_move, run_histories
from support.serialized_dags import Node, dag


def may_happen(history: History, move: Move) -> bool:
    """Leave out a deferral after a push, which has a separate test.

    Also leave out moves that end a task without another try although it is to be retried: a new client would then get
    the output of the last try.
    """
    key = sorted(history.rows)[move[1] % len(history.rows)]
    if history.output_length(key) and history.rows[key].state in RETRACTING_STATES:
        return move[0] in {"read", "advance", "start", "run", "emit", "clear"}
    return move[0] != "defer" or key not in history.xcoms


def follow(run: RunState, history: History, after: int = 0) -> RunState:
    for transition in history.journal[after:]:
        run.apply(transition)
    return run


@given(run_histories)
def test_applying_all_rows_equals_reading_the_database(moves: list[Move]) -> None:
    history = History()
    history.marked = {"ask"}
    run = history.state()
    seen = len(history.journal)
    for move in moves:
        if move[0] == "read":
            follow(run, history, seen)
            seen = len(history.journal)
            assert run.is_deleted == history.deleted
            assert history.deleted or comparable_state(run) == comparable_state(history.state())
        elif may_happen(history, move):
            apply_move(history, move)


@given(run_histories)
def test_sums_equal_those_of_the_instances(moves: list[Move]) -> None:
    history = History()
    run = history.state()
    for move in moves:
        apply_move(history, move)
    for transition in history.journal:
        run.apply(transition)
        for instances in run.tasks.values():
            states = {one.state for one in instances.values()}
            assert instances.by_state == {
                state: {index for index, one in instances.items() if one.state == state} for state in states
            }
            with_value = {
                index
                for index, one in instances.items()
                if one.state == "success" or (one.state == "running" and one.pushed is not None)
            }
            wanted = {index for index, one in instances.items() if one.state != "removed"}
            assert instances.indexes_with_result == with_value
            assert count_expected_results(instances) == len(wanted)
            assert (instances.indexes_with_result == wanted) == (with_value == wanted)
            assert instances.tries == sum(one.try_number for one in instances.values())


@given(run_histories, run_histories)
def test_a_snapshot_plus_the_rest_of_the_journal_is_the_whole_journal(before: list[Move], after: list[Move]) -> None:
    history = History()
    first = history.state()
    for move in before:
        if may_happen(history, move) and move[0] != "delete_run":
            apply_move(history, move)
    joined, read = history.state(), len(history.journal)
    for move in after:
        if may_happen(history, move):
            apply_move(history, move)
    assert comparable_state(follow(joined, history, read)) == comparable_state(follow(first, history))


@given(run_histories)
def test_task_frames_have_the_states(moves: list[Move]) -> None:
    history = History()
    run = history.state()
    seen: dict[tuple[str, int], tuple[str | None, int]] = {(task_id, -1): (None, 0) for task_id in history.graph.tasks}
    for move in moves:
        apply_move(history, move)
    for transition in history.journal:
        for frame in run.apply(transition):
            if isinstance(frame, TaskTransition):
                if frame.map_index >= 0:
                    seen.pop((frame.task_id, -1), None)
                seen[frame.task_id, frame.map_index] = (frame.state, frame.try_number)
    assert seen == {key: (row.state, row.try_number) for key, row in history.rows.items()}


def pushed(history: History, task_id: str = "answer", map_index: int = -1) -> tuple[bool, bool]:
    """Whether a push counts, both after applying it and after reading the tables."""
    followed, read = follow(History().state(), history), history.state()
    return (
        followed.tasks[task_id][map_index].pushed is not None,
        read.tasks[task_id][map_index].pushed is not None,
    )


def test_a_push_of_a_running_task_counts() -> None:
    history = History()
    history.start("answer")
    history.push("answer")
    assert pushed(history) == (True, True)


@pytest.mark.parametrize("state", ["failed", "skipped", "up_for_retry", "queued", "restarting", None])
def test_a_push_of_a_task_that_does_not_run_does_not_count(state: str | None) -> None:
    history = History()
    history.start("answer")
    history.set_task("answer", state)
    history.push("answer")
    assert pushed(history) == (False, False)


def test_a_push_does_not_count_for_the_next_try() -> None:
    history = History()
    history.start("answer")
    history.push("answer")
    history.set_task("answer", "up_for_retry")
    history.start("answer")
    assert pushed(history) == (False, False)


@pytest.mark.parametrize("state", ["scheduled", "queued", "running", "success"])
def test_a_push_does_not_count_for_a_row_of_another_try(state: str) -> None:
    """Also if the rows between both tries are missing, as after a dropped write."""
    history = History()
    history.start("answer")
    history.push("answer")
    run = history.state()
    history.set_task("answer", state)
    (row,) = history.journal[-1:]
    for try_number, is_pushed in ((row.try_number, True), ((row.try_number or 0) + 1, False)):
        run.apply(row._replace(try_number=try_number))
        instance = run.tasks["answer"][-1]
        assert (instance.pushed is not None) == is_pushed


def test_a_push_before_a_deferral_counts_afterwards() -> None:
    """It is the same try: Airflow keeps its XComs and its `start_date`."""
    history = History()
    history.start("answer")
    history.push("answer")
    for state in ("deferred", "scheduled", "queued", "running"):
        history.set_task("answer", state)
    assert pushed(history) == (True, True)


def test_old_value_of_a_cleared_task_does_not_count_until_pushed_again() -> None:
    history = History()
    history.run_task("answer")
    history.clear("answer")
    history.start("answer")
    assert pushed(history) == (False, False)
    history.push("answer")
    assert pushed(history) == (True, True)


def test_other_keys_are_no_return_values() -> None:
    history = History()
    history.start("answer")
    history.push("answer")
    history.journal[-1] = history.journal[-1]._replace(xcom_key="stream")
    assert pushed(history)[0] is False


def test_an_xcom_is_no_frame() -> None:
    history = History()
    run = history.state()
    history.start("answer")
    follow(run, history)
    history.push("answer")
    assert not run.apply(history.journal[-1])


def test_xcom_of_an_unknown_task_is_ignored() -> None:
    history = History()
    run = RunState(history.key, history.run)
    history.start("answer")
    history.push("answer")
    run.apply(history.journal[-1])
    assert run.tasks == {}


def test_expanded_instances_replace_the_unexpanded_one() -> None:
    history = History()
    run = history.state()
    history.expand("answer", 3)
    follow(run, history)
    assert run.tasks["answer"].keys() == {0, 1, 2}


@pytest.mark.parametrize("dag_result", [None, False, True])
def test_a_value_contains_the_native_mark_of_its_task(dag_result: bool | None) -> None:  # a value, not a switch
    history = History()
    run = history.state()
    history.start("ask")
    history.push("ask", dag_result=dag_result)
    shown = {} if dag_result is None else {"ask": dag_result}
    assert follow(run, history).native_marks == shown
    assert history.state().native_marks == shown


def native_marks(history: History) -> list[dict[str, bool]]:
    """Return the marks after all rows, and after a read of the tables now."""
    followed = RunState(history.key, history.run, history.graph)
    for transition in history.journal:
        followed.apply(transition)
    return [followed.native_marks, history.state().native_marks]


def test_a_native_mark_counts_while_its_value_counts() -> None:
    history = History()
    history.start("ask")
    history.push("ask", dag_result=True)
    history.set_task("ask", "up_for_retry")
    assert native_marks(history) == [{}, {}]
    history.start("ask")
    assert native_marks(history) == [{}, {}]
    history.succeed("ask")
    assert native_marks(history) == [{}, {}], "the value of the first try is deleted"
    history.clear("ask")
    history.start("ask")
    history.push("ask", dag_result=True)
    history.clear("ask")
    assert native_marks(history) == [{}, {}]
    history.set_task("ask", "success")
    assert native_marks(history) == [{"ask": True}] * 2, "marked as a success, the task keeps its value"


def test_one_instance_of_a_mapped_task_shows_its_native_mark() -> None:
    history = History()
    history.expand("ask", 2)
    history.start("ask", 0)
    history.push("ask", 1, 0, dag_result=True)
    assert native_marks(history) == [{"ask": True}] * 2


def test_a_late_value_counts_once_its_task_is_marked_as_success() -> None:
    history = History()
    history.start("answer")
    history.set_task("answer", "failed")
    history.push("answer", 1)
    joining, watching = history.state(), follow(RunState(KEY, history.run, history.graph), history)
    for run in (joining, watching):
        assert run.tasks["answer"][-1].pushed is None
    history.set_task("answer", "success")
    for run in (joining, watching):
        run.apply(history.journal[-1])
        assert run.tasks["answer"][-1].pushed is not None


def test_a_run_is_outdated_by_an_instance_of_another_dag_version() -> None:
    history = History(graph({"a": ["b"], "b": []}, {}))
    del history.rows["b", -1]
    run = history.state()
    history.set_task("b", None)
    assert run.is_outdated_by(history.journal[-1])


def test_a_run_is_not_outdated_by_the_expansion_of_a_task() -> None:
    history = History(dag({"list": Node("work"), "work": Node(mapped_over="list")}))
    run = history.state()
    history.expand("work", 3)
    for row in history.journal[-3:]:  # each may come in a batch of its own
        assert not run.is_outdated_by(row)
        run.apply(row)
    assert not run.is_outdated
    history.set_task("work", None, 3)  # as when another version maps it over a longer list
    assert run.is_outdated_by(history.journal[-1])


def test_run_transition_has_its_row() -> None:
    history = History()
    run = history.state()
    history.set_run("running")
    (frame,) = run.apply(history.journal[-1])
    assert isinstance(frame, RunTransition)
    assert (frame.state, frame.clear_number, frame.seq) == ("running", 0, len(history.journal))
    assert run.info.start_date == frame.at == at(len(history.journal))


@pytest.mark.parametrize(
    ("state", "final"), [("queued", False), ("running", False), ("success", True), ("failed", True)]
)
def test_run_has_ended_in_airflows_final_states(state: str, *, final: bool) -> None:
    history = History()
    history.set_run(state)
    assert history.state().has_ended is final


def test_the_tasks_of_a_run_are_those_of_its_dag_and_those_of_its_rows() -> None:
    history = History(graph({"a": ["b"], "b": []}, {}))
    run = history.state()
    assert run.task_ids == {"a", "b"}
    run.graph = None
    del run.tasks["b"]
    assert run.task_ids == {"a"}


def snapshot_of_mapped(length: int, states: Sequence[str | None]) -> Snapshot:
    history = History(graph({"square": [], "other": []}, {}))
    history.expand("square", length)
    for index, state in enumerate(states):
        history.set_task("square", state, index)
    return history.state().snapshot(("square",))


def test_a_snapshot_lists_instances_in_order() -> None:
    snapshot = snapshot_of_mapped(3, ["success", "running", None])
    assert [(task.task_id, task.map_index, task.state) for task in snapshot.tasks] == [
        ("other", -1, None),
        ("square", 0, "success"),
        ("square", 1, "running"),
        ("square", 2, None),
    ]
    assert snapshot.result_tasks == ["square"]
    assert snapshot.counts == {}


def test_a_snapshot_counts_the_instances_of_large_mapped_tasks() -> None:
    at_most = snapshot_of_mapped(MAX_LISTED_INSTANCES, [])
    assert len(at_most.tasks) == MAX_LISTED_INSTANCES + 1
    assert at_most.counts == {}
    snapshot = snapshot_of_mapped(MAX_LISTED_INSTANCES + 1, ["success", "success", "failed"])
    assert [task.task_id for task in snapshot.tasks] == ["other"]
    assert snapshot.counts == {"square": {"success": 2, "failed": 1, "no_status": MAX_LISTED_INSTANCES - 2}}


@pytest.mark.parametrize(("tasks", "length"), [(5001, 1), (300, 60), (3000, 5)])
def test_a_snapshot_of_a_large_run_has_less_than_a_mebibyte(tasks: int, length: int) -> None:
    run = RunState(KEY, History(graph({}, {})).state().info)
    date = datetime(2026, 11, 22, 14, 21, 10, 812345, tzinfo=timezone.utc)
    for number in range(tasks):
        for index in range(length) if length > 1 else (-1,):
            run.add_instance(f"group.task_{number:05}", index, TaskInstance("upstream_failed", 1, date, date))
    snapshot = run.snapshot(("group.task_00000",))
    assert len(msgspec.json.encode(snapshot)) < 1024 * 1024
    assert len(snapshot.tasks) + sum(sum(states.values()) for states in snapshot.counts.values()) == tasks * length
    assert {task.task_id for task in snapshot.tasks}.isdisjoint(snapshot.counts)
    assert len(msgspec.json.encode(snapshot.tasks)) > 400 * 1024, "as many as fit are listed"

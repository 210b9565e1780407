"""Airflow 3.3's own result marks, which are stored with return values only. Its `GET …/wait` returns the same tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import FailureKnown, ResultKnown, Undecided, WatchOptions, evaluate
from stream_server.protocol.frames import Failure, Reset, Result
from support.builders import History, SimulatedReader, graph, results_of, types
from support.run_moves import Move, apply_move, run_histories
from support.serialized_dags import Node, dag, teardown

LEAVES: dict[str, list[str]] = {"left": [], "right": [], "log": []}
ALL_KNOWN = {"left": True, "right": True, "log": False}
BRANCH = dag({"choose": Node("left", "right", _can_skip_downstream=True), "left": Node(), "right": Node()})


def history_of(
    dag: Graph | None = None, *, marked: tuple[str, ...] = ("left", "right"), earlier: Mapping[str, bool] | None = None
) -> History:
    history = History(dag or graph(LEAVES, {}))
    history.marked, history.earlier_marks = marked, earlier
    return history


class TestTeardown:
    """No result waits for a teardown."""

    TEARDOWN = dag({"answer": Node("down"), "down": teardown()})

    def test_its_mark_revokes_no_value(self) -> None:
        history = history_of(self.TEARDOWN, marked=("down",))
        reader = SimulatedReader(history, until="run")
        history.run_task("answer", 1)
        assert results_of(reader.catch_up()) == [{"answer": 1}]
        history.run_task("down", 2)
        assert reader.catch_up() == []
        history.set_run("success")
        assert types(reader.catch_up()) == ["end"]
        assert results_of(SimulatedReader(history, until="run").receive()) == [{"answer": 1}]

    def test_its_mark_counts_if_an_earlier_run_showed_it(self) -> None:
        history = history_of(self.TEARDOWN, marked=("down",), earlier={"answer": False, "down": True})
        reader = SimulatedReader(history)
        history.run_task("answer", 1)
        assert reader.catch_up() == []
        history.run_task("down", 2)
        assert results_of(reader.catch_up()) == [{"down": 2}]


class TestFirstRunOfAVersion:
    def test_result_of_all_marked_tasks_is_sent_when_the_run_ends(self) -> None:
        history = history_of()
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        assert reader.catch_up() == []
        history.run_task("right", 2)
        assert reader.catch_up() == []
        history.run_task("log")
        assert reader.catch_up() == []
        history.set_run("success")
        frames = reader.catch_up()
        assert types(frames) == ["result", "end"]
        assert results_of(frames) == [{"left": 1, "right": 2}]

    def test_a_single_marked_task_waits_for_the_end_as_well(self) -> None:
        history = history_of(graph({"left": ["log"], "log": []}, {}), marked=("left",))
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        history.run_task("log")
        assert reader.catch_up() == []
        history.set_run("success")
        assert results_of(reader.catch_up()) == [{"left": 1}]

    def test_the_result_names_the_last_row_of_the_run(self) -> None:
        history = history_of()
        reader = SimulatedReader(history)
        history.run_task("left")
        history.set_run("success")
        result = reader.catch_up()[0]
        assert isinstance(result, Result)
        assert (result.seq, result.at) == (history.journal[-1].seq, history.journal[-1].at)

    def test_a_client_that_joins_after_the_end_gets_the_same(self) -> None:
        history = history_of()
        history.run_task("left", 1)
        history.run_task("right", 2)
        history.set_run("success")
        assert results_of(SimulatedReader(history).receive()) == [{"left": 1, "right": 2}]

    def test_serialised_marks_give_an_early_result(self) -> None:
        marked = dag({"left": Node(params={"stream_result": True}), "right": Node(params={"stream_result": True})})
        history = history_of(marked)
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        assert reader.catch_up() == []
        history.start("right")
        history.push("right", 2)
        assert results_of(reader.catch_up()) == [{"left": 1, "right": 2}]

    def test_a_caller_that_names_the_tasks_gets_them_early(self) -> None:
        history = history_of()
        reader = SimulatedReader(history, "left")
        history.run_task("left", 1)
        assert results_of(reader.catch_up()) == [{"left": 1}]

    def test_failure_of_a_task_that_may_be_marked_is_a_failure(self) -> None:
        history = history_of()
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        history.set_task("right", "failed")
        frames = reader.catch_up()
        assert types(frames) == ["failure", "end"]
        assert isinstance(frames[0], Failure)
        assert frames[0].task_id == "right"

    def test_a_failed_run_has_no_result(self) -> None:
        history = history_of()
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        reader.catch_up()
        history.set_run("failed")
        assert types(reader.catch_up()) == ["failure", "end"]
        assert evaluate(history.state(), WatchOptions()) == FailureKnown(
            "run_failed", history.state().last_change, state="failed"
        )


class TestAfterAnEndedRun:
    def test_result_is_sent_with_the_last_value(self) -> None:
        history = history_of(earlier=ALL_KNOWN)
        reader = SimulatedReader(history)
        history.start("left")
        history.start("right")
        history.push("left", 1)
        assert reader.catch_up() == []
        history.push("right", 2)
        frames = reader.catch_up()
        assert types(frames) == ["result", "end"]
        assert results_of(frames) == [{"left": 1, "right": 2}]

    def test_confirmed_result_is_sent_with_the_last_success(self) -> None:
        history = history_of(earlier=ALL_KNOWN)
        reader = SimulatedReader(history, confirm="success")
        history.run_task("left", 1)
        history.start("right")
        history.push("right", 2)
        assert reader.catch_up() == []
        history.succeed("right")
        assert results_of(reader.catch_up()) == [{"left": 1, "right": 2}]

    @pytest.mark.parametrize("until", ["result", "run"])
    def test_the_rest_of_the_run_changes_nothing(self, until: Literal["result", "run"]) -> None:
        history = history_of(earlier=ALL_KNOWN)
        reader = SimulatedReader(history, until=until)
        for task_id in LEAVES:
            history.run_task(task_id, 1)
            reader.catch_up()
        history.set_run("success")
        reader.catch_up()
        assert types(reader.frames) == ["result", "end"]

    def test_a_task_without_an_earlier_value_is_waited_for(self) -> None:
        """The earlier run failed before `right` had pushed."""
        history = history_of(earlier={"left": True, "log": False})
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        assert reader.catch_up() == []
        history.start("right")
        history.push("right", 2)
        assert results_of(reader.catch_up()) == [{"left": 1, "right": 2}]

    @pytest.mark.parametrize("state", ["success", "skipped"])
    def test_a_task_that_ends_without_a_value_is_not_waited_for_any_longer(self, state: str) -> None:
        history = history_of(earlier={"left": True, "log": False})
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        assert reader.catch_up() == []
        history.set_task("right", state)
        assert results_of(reader.catch_up()) == [{"left": 1}]

    def test_a_failed_task_without_an_earlier_value_may_be_marked(self) -> None:
        history = history_of(earlier={"left": True, "log": False})
        reader = SimulatedReader(history)
        history.run_task("left", 1)
        history.set_task("right", "failed")
        assert reader.catch_up() == []
        history.set_run("failed")
        assert types(reader.catch_up()) == ["failure", "end"]

    def test_a_failed_run_keeps_the_result_of_the_marked_tasks(self) -> None:
        history = history_of(earlier=ALL_KNOWN)
        history.run_task("left", 1)
        history.run_task("right", 2)
        history.set_task("log", "failed")
        history.set_run("failed")
        assert results_of(SimulatedReader(history).receive()) == [{"left": 1, "right": 2}]

    def test_a_watcher_for_failures_is_waited_for_only_when_it_runs(self) -> None:
        watched = dag(
            {
                "left": Node("alarm"),
                "log": Node("alarm"),
                "alarm": Node("page", trigger_rule="one_failed"),
                "page": Node(),
            }
        )
        history = history_of(watched, marked=("left", "alarm"), earlier={"left": True, "log": False})
        history.run_task("left", 1)
        assert isinstance(evaluate(history.state(), WatchOptions()), ResultKnown)
        history.set_task("log", "failed")
        assert evaluate(history.state(), WatchOptions()) == Undecided()
        history.start("alarm")
        assert evaluate(history.state(), WatchOptions()) == Undecided()

    @pytest.mark.parametrize("rule", ["all_failed", "one_failed"])
    def test_a_watcher_that_is_about_to_run_may_show_its_mark(self, rule: str) -> None:
        watched = dag(
            {
                "log": Node("answer", "alarm"),
                "answer": Node(trigger_rule="always"),
                "alarm": Node(trigger_rule=rule),
            }
        )
        history = history_of(watched, marked=("alarm",), earlier={"log": False})
        history.start("log")
        history.run_task("answer", 1)
        assert isinstance(evaluate(history.state(), WatchOptions()), ResultKnown)
        history.set_task("log", "skipped")
        assert isinstance(evaluate(history.state(), WatchOptions()), ResultKnown)
        history.set_task("log", "failed")
        assert evaluate(history.state(), WatchOptions()) == Undecided()

    def test_moved_mark_invalidates_earlier_marks(self) -> None:
        """A moved mark makes no new DAG version: Airflow does not serialise the mark."""
        history = history_of(marked=("right", "log"), earlier={"left": True, "right": False, "log": False})
        reader = SimulatedReader(history)
        history.run_task("right", 2)
        history.run_task("left", 1)
        assert reader.catch_up() == []
        history.run_task("log", 3)
        assert reader.catch_up() == []
        history.set_run("success")
        assert results_of(reader.catch_up()) == [{"right": 2, "log": 3}]

    def test_the_failure_of_a_marked_task_does_not_wait(self) -> None:
        history = history_of(earlier=ALL_KNOWN)
        reader = SimulatedReader(history)
        history.set_task("right", "failed")
        assert types(reader.catch_up()) == ["failure", "end"]

    def test_without_marks_the_only_leaf_gives_an_early_result(self) -> None:
        history = history_of(graph({"left": ["log"], "log": []}, {}), marked=(), earlier={"left": False})
        reader = SimulatedReader(history)
        history.run_task("left")
        history.start("log")
        history.push("log", 3)
        assert results_of(reader.catch_up()) == [{"log": 3}]


class TestBranches:
    @pytest.mark.parametrize("earlier", [{"choose": False, "left": True}, {"choose": False, **ALL_KNOWN}])
    def test_a_skipped_task_is_left_out(self, earlier: Mapping[str, bool]) -> None:
        history = history_of(BRANCH, earlier=earlier)
        reader = SimulatedReader(history)
        history.run_task("choose")
        history.set_task("left", "skipped")
        assert reader.catch_up() == []
        history.start("right")
        history.push("right", 2)
        assert results_of(reader.catch_up()) == [{"right": 2}]

    def test_a_task_that_will_be_skipped_is_left_out(self) -> None:
        deep = dag(
            {
                "choose": Node("a", "right", _can_skip_downstream=True),
                "a": Node("left"),
                "left": Node(),
                "right": Node(),
            }
        )
        history = history_of(deep, earlier={"choose": False, "a": False, "left": True, "right": True})
        reader = SimulatedReader(history)
        history.run_task("choose")
        history.set_task("a", "skipped")
        history.start("right")
        history.push("right", 2)
        assert results_of(reader.catch_up()) == [{"right": 2}]

    def test_mapped_over_nothing_is_a_value(self) -> None:
        mapped = dag({"list": Node("left"), "left": Node(mapped_over="list"), "right": Node()})
        history = history_of(mapped, earlier={"list": False, "left": True, "right": True})
        reader = SimulatedReader(history)
        history.run_task("list", [])
        history.expand_to_nothing("left")
        history.run_task("right", 2)
        assert results_of(reader.catch_up()) == [{"left": [], "right": 2}]


marks = st.sets(st.sampled_from(sorted(LEAVES)), min_size=1).map(sorted).map(tuple)


@given(marks, run_histories)
def test_first_run_has_all_marked_values_at_its_end(marked: tuple[str, ...], moves: list[Move]) -> None:
    history = history_of(marked=marked)
    reader = SimulatedReader(history, until="run")
    for move in moves:
        apply_move(history, move)
        for frame in reader.catch_up():
            if isinstance(frame, Result):
                assert history.run.state == "success"
                values = {task_id for (task_id, _), xcom in history.xcoms.items() if xcom.dag_result}
                succeeded = {one for one in values if reader.run.tasks[one].by_state.keys() == {"success"}}
                assert succeeded <= frame.results.keys() <= values
        joining = evaluate(history.state(), WatchOptions())
        assert history.deleted or type(evaluate(reader.run, WatchOptions())) is type(joining)


@given(marks, run_histories)
def test_with_all_marks_known_a_result_is_never_partial(marked: tuple[str, ...], moves: list[Move]) -> None:
    history = history_of(marked=marked, earlier={task_id: task_id in marked for task_id in LEAVES})
    reader = SimulatedReader(history, until="run")
    is_retracted = True
    for move in moves:
        apply_move(history, move)
        for frame in reader.catch_up():
            if isinstance(frame, Result):
                skipped = {one for one in marked if reader.run.tasks[one].by_state.keys() == {"skipped"}}
                assert is_retracted
                assert frame.results.keys() == set(marked) - skipped
            is_retracted = isinstance(frame, Reset) or (is_retracted and not isinstance(frame, Result))

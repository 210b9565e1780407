"""Skips are no failure, and skipped result tasks are left out of the result."""

from __future__ import annotations

import pytest

from stream_server.domain.graph import Graph
from stream_server.protocol.frames import AnyFrame, End, Failure
from support.builders import History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag

MARK = {"stream_result": True}
BRANCH = dag(
    {
        "branch": Node("left", "right", _can_skip_downstream=True),
        "left": Node(params=MARK),
        "right": Node(params=MARK),
    }
)
ALERT = dag({"work": Node("alert"), "alert": Node(trigger_rule="one_failed")})
WATCHER = dag(
    {
        "t1": Node("t2", "watcher"),
        "t2": Node("t3", "watcher"),
        "t3": Node("watcher"),
        "watcher": Node(trigger_rule="one_failed"),
    }
)


def end_of(frames: list[AnyFrame]) -> End:
    assert isinstance(frames[-1], End)
    return frames[-1]


def failure_of(frames: list[AnyFrame]) -> Failure:
    (failure,) = [frame for frame in frames if isinstance(frame, Failure)]
    return failure


class TestSkippedResultTask:
    @pytest.mark.parametrize("results", [(), ("answer",)])
    def test_outcome_is_none_when_the_run_has_succeeded(self, results: tuple[str, ...]) -> None:
        history = History()
        reader = SimulatedReader(history, *results)
        history.run_task("ask")
        history.start("answer")
        history.set_task("answer", "skipped")
        assert reader.catch_up() == []
        history.set_run("success")
        frames = reader.catch_up()
        assert types(frames) == ["end"]
        assert (end_of(frames).outcome, end_of(frames).reason, end_of(frames).task_id) == (
            "none",
            "task_skipped",
            "answer",
        )
        assert SimulatedReader(history, *results).frames == frames

    def test_upstream_failed_is_pending_while_a_branch_may_skip_the_task(self) -> None:
        history = History(
            dag({"branch": Node("answer", _can_skip_downstream=True), "other": Node("answer"), "answer": Node()})
        )
        reader = SimulatedReader(history, "answer")
        history.start("branch")
        history.start("other")
        history.set_task("other", "failed")
        history.set_task("answer", "upstream_failed")
        assert "failure" not in types(reader.catch_up())
        history.set_task("answer", "skipped")
        history.succeed("branch")
        history.set_run("success")
        end = reader.catch_up()[-1]
        assert isinstance(end, End)
        assert (end.outcome, end.reason) == ("none", "task_skipped")

    def test_a_removed_task_that_fail_fast_skips_is_removed_again(self) -> None:
        history = History(graph({"other": [], "log": []}, {}))
        history.set_task("answer", "removed")
        reader = SimulatedReader(history, "other", "answer", until="run")
        history.run_task("other", 1)
        history.set_task("log", "failed")
        history.set_task("answer", "skipped")
        assert results_of(reader.catch_up()) == []
        history.set_task("answer", "removed")
        history.set_run("failed")
        assert failure_of(reader.catch_up()).reason == "task_removed"

    def test_outcome_is_the_failure_if_the_run_fails(self) -> None:
        history = History(graph({"ask": ["answer", "log"], "answer": [], "log": []}, {}))
        reader = SimulatedReader(history, "answer")
        history.run_task("ask")
        history.start("answer")
        history.set_task("answer", "skipped")
        assert reader.catch_up() == []
        history.start("log")
        history.set_task("log", "failed")
        failure = failure_of(reader.catch_up())
        assert (failure.reason, failure.task_id) == ("task_failed", "log")
        history.set_run("failed")
        assert failure_of(SimulatedReader(history, "answer").frames).task_id == "log"

    def test_outcome_is_the_failed_run_if_no_task_failed(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.set_task("answer", "skipped")
        history.set_run("failed")
        failure = failure_of(reader.catch_up())
        assert (failure.reason, failure.task_id) == ("run_failed", None)

    def test_a_cleared_skip_leads_to_a_result(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.set_task("answer", "skipped")
        reader.catch_up()
        history.clear("answer")
        history.run_task("answer", 1)
        assert results_of(reader.catch_up()) == [{"answer": 1}]


class TestSeveralResultTasks:
    def test_a_skipped_one_is_left_out(self) -> None:
        history = History(BRANCH)
        reader = SimulatedReader(history)
        history.start("branch")
        history.skip_from_outside("left")
        history.succeed("branch")
        assert reader.catch_up() == []
        history.start("right")
        history.push("right", 2)
        frames = reader.catch_up()
        assert results_of(frames) == [{"right": 2}]
        assert results_of(SimulatedReader(history).receive()) == [{"right": 2}]

    def test_one_that_is_skipped_last_completes_the_result(self) -> None:
        history = History(graph({"left": [], "right": []}, {}))
        reader = SimulatedReader(history, "left", "right")
        history.run_task("left", 1)
        history.start("right")
        assert reader.catch_up() == []
        history.set_task("right", "skipped")
        assert results_of(reader.catch_up()) == [{"left": 1}]

    def test_all_skipped_has_no_outcome_and_names_the_first(self) -> None:
        history = History(BRANCH)
        reader = SimulatedReader(history, "right", "left")
        history.start("branch")
        history.skip_from_outside("left")
        history.skip_from_outside("right")
        history.succeed("branch")
        assert reader.catch_up() == []
        history.set_run("success")
        end = end_of(reader.catch_up())
        assert (end.outcome, end.reason, end.task_id) == ("none", "task_skipped", "right")

    def test_one_that_failed_is_the_failure(self) -> None:
        history = History(graph({"left": [], "right": []}, {}))
        reader = SimulatedReader(history, "left", "right")
        history.run_task("left", 1)
        history.set_task("right", "failed")
        assert failure_of(reader.catch_up()).task_id == "right"

    def test_the_first_one_that_failed_is_named(self) -> None:
        history = History(graph({"left": [], "right": []}, {}))
        reader = SimulatedReader(history, "left", "right")
        history.set_task("right", "failed")
        assert failure_of(reader.catch_up()).task_id == "right"
        history.set_task("left", "failed")
        assert failure_of(SimulatedReader(history, "left", "right").frames).task_id == "right"


class TestImplicitLeaf:
    @pytest.mark.parametrize(("watched", "answers"), [(ALERT, ["work"]), (WATCHER, ["t1", "t2", "t3"])])
    def test_a_leaf_that_runs_only_on_failure_does_not_answer(self, watched: Graph, answers: list[str]) -> None:
        history = History(watched)
        reader = SimulatedReader(history)
        for task_id in answers:
            history.run_task(task_id, task_id)
        assert results_of(reader.catch_up()) == [{answers[-1]: answers[-1]}]

    def test_failure_of_the_work_is_a_failure(self) -> None:
        history = History(WATCHER)
        reader = SimulatedReader(history)
        history.start("t1")
        history.set_task("t1", "failed")
        failure = failure_of(reader.catch_up())
        assert (failure.reason, failure.task_id) == ("task_failed", "t1")

    def test_an_empty_end_does_not_answer(self) -> None:
        history = History(
            dag({"start": Node("work", _is_empty=True), "work": Node("end"), "end": Node(_is_empty=True)})
        )
        reader = SimulatedReader(history)
        history.succeed_directly("start")
        history.run_task("work", 1)
        assert results_of(reader.catch_up()) == [{"work": 1}]

    def test_a_leaf_after_a_failure_answers_if_it_returns_a_value(self) -> None:
        history = History(dag({"work": Node("notify"), "notify": Node(trigger_rule="all_done")}))
        reader = SimulatedReader(history)
        history.start("work")
        history.set_task("work", "failed")
        assert reader.catch_up() == []
        history.run_task("notify", "sent")
        assert results_of(reader.catch_up()) == [{"notify": "sent"}]

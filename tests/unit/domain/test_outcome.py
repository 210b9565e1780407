"""Single cases of the rule, one batch for each step. Properties of random runs are in `test_outcome_properties`."""

from __future__ import annotations

import pytest

from stream_server.domain.outcome import ReturnValue, Undecided, WatchOptions, evaluate, select_result_tasks
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.run_state import RunState
from stream_server.protocol.frames import AnyFrame, End, Failure, Result
from support.builders import KEY, History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag

TWO_LEAVES = {"ask": ["left", "right"], "left": [], "right": []}


def failure_of(frames: list[AnyFrame]) -> Failure:
    (failure,) = [frame for frame in frames if isinstance(frame, Failure)]
    return failure


def end_of(frames: list[AnyFrame]) -> End:
    assert isinstance(frames[-1], End)
    return frames[-1]


class TestSelectResultTasks:
    def test_result_tasks_are_those_that_the_caller_names(self) -> None:
        assert select_result_tasks(History().state(), WatchOptions(result_tasks=("ask", "answer"))) == ("ask", "answer")

    def test_result_tasks_are_marked_in_the_serialised_dag(self) -> None:
        marked = dag({"ask": Node("left", "right"), "left": Node(params={"stream_result": True}), "right": Node()})
        run = History(marked).state()
        assert select_result_tasks(run, WatchOptions()) == ("left",)
        run.native_marks = {"left": True, "right": True}
        assert select_result_tasks(run, WatchOptions()) == ("left",)

    def test_result_tasks_have_the_native_mark_in_this_or_earlier_runs(self) -> None:
        run = History(graph(TWO_LEAVES, {})).state()
        run.earlier_marks = {"ask": False, "right": True}
        assert select_result_tasks(run, WatchOptions()) == ("right",)
        run.native_marks = {"left": True}
        assert select_result_tasks(run, WatchOptions()) == ("left", "right")
        run.native_marks = {"left": True, "right": False}
        assert select_result_tasks(run, WatchOptions()) == ("left",)

    def test_result_task_is_the_only_leaf(self) -> None:
        assert select_result_tasks(History().state(), WatchOptions()) == ("answer",)

    def test_no_result_task_with_several_leaves(self) -> None:
        assert select_result_tasks(History(graph(TWO_LEAVES, {})).state(), WatchOptions()) == ()
        assert select_result_tasks(RunState(KEY, History().run), WatchOptions()) == ()


class TestResult:
    def test_result_is_sent_when_pushed_before_the_task_succeeds(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        assert reader.catch_up() == []
        history.push("answer", {"text": "because"})
        frames = reader.catch_up()
        assert results_of(frames) == [{"answer": {"text": "because"}}]
        assert types(frames) == ["result", "end"]
        assert end_of(frames).outcome == "result"

    def test_result_names_the_row_that_completed_it(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.push("answer")
        pushed = history.journal[-1]
        history.succeed("answer")
        result = reader.catch_up()[0]
        assert isinstance(result, Result)
        assert (result.seq, result.at) == (pushed.seq, pushed.at)

    def test_result_that_is_older_than_the_stream_has_no_row(self) -> None:
        history = History()
        history.run_task("answer", 42)
        reader = SimulatedReader(history)
        (result, end) = reader.receive()
        assert isinstance(result, Result)
        assert (result.seq, result.at, results_of([result])) == (None, None, [{"answer": 42}])
        assert isinstance(end, End)

    def test_task_that_returns_none_has_null_as_result_when_it_succeeds(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.succeed("answer")
        assert results_of(reader.catch_up()) == [{"answer": None}]

    def test_task_without_a_worker_has_null_as_result(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.succeed_directly("answer")
        assert results_of(reader.catch_up()) == [{"answer": None}]

    def test_several_result_tasks_give_one_result(self) -> None:
        history = History()
        reader = SimulatedReader(history, "ask", "answer")
        history.run_task("ask", 1)
        assert reader.catch_up() == []
        history.run_task("answer", 2)
        assert results_of(reader.catch_up()) == [{"ask": 1, "answer": 2}]

    def test_value_is_sent_as_the_database_holds_it(self) -> None:
        history = History()
        history.run_task("answer")
        run = history.state()
        frames = OutcomeTracker(WatchOptions()).add_values(
            run, {"answer"}, {("answer", -1): ReturnValue(9, '{"a": 1.0}')}
        )
        assert isinstance(frames[0], Result)
        assert bytes(frames[0].results["answer"]) == b'{"a": 1.0}'

    def test_a_large_value_is_a_reference_with_quoted_ids(self) -> None:
        history = History()
        history.run_task("answer")
        frames = OutcomeTracker(WatchOptions()).add_values(
            history.state(), {"answer"}, {("answer", -1): ReturnValue(5_000_000, None)}
        )
        assert isinstance(frames[0], Result)
        assert frames[0].results == {}
        reference = frames[0].references["answer"]
        assert reference.bytes == 5_000_000
        assert reference.href == (
            "/api/v2/dags/ask_llm/dagRuns/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
            "/taskInstances/answer/xcomEntries/return_value"
        )


class TestFailure:
    @pytest.mark.parametrize("state", ["failed", "upstream_failed", "removed"])
    def test_result_task_that_ended_without_a_value_is_a_failure(self, state: str) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.set_task("answer", state)
        row = history.journal[-1]
        frames = reader.catch_up()
        failure = failure_of(frames)
        assert (failure.reason, failure.task_id, failure.state) == (f"task_{state}", "answer", state)
        assert (failure.seq, failure.at, failure.predicted) == (row.seq, row.at, False)
        assert end_of(frames).outcome == "failure"

    @pytest.mark.parametrize(
        "state",
        [None, "scheduled", "queued", "running", "restarting", "up_for_retry", "up_for_reschedule", "deferred"],
    )
    def test_undecided_while_a_result_task_may_still_succeed(self, state: str | None) -> None:
        history = History()
        history.set_task("answer", state)
        assert evaluate(history.state(), WatchOptions()) == Undecided()

    def test_one_of_several_result_tasks_failing_is_enough(self) -> None:
        history = History()
        reader = SimulatedReader(history, "ask", "answer")
        history.set_task("answer", "failed")
        assert failure_of(reader.catch_up()).task_id == "answer"

    def test_failed_run_is_a_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.set_run("failed")
        failure = failure_of(reader.catch_up())
        assert (failure.reason, failure.task_id, failure.state) == ("run_failed", None, "failed")

    def test_failed_run_does_not_retract_a_result(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.run_task("answer", 1)
        reader.catch_up()
        history.set_task("clean_up", "failed")
        history.set_run("failed")
        frames = reader.catch_up()
        assert types(frames) == ["end"]
        assert (end_of(frames).state, end_of(frames).outcome) == ("failed", "result")

    def test_deleted_run_is_a_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.delete()
        frames = reader.catch_up()
        assert failure_of(frames).reason == "run_deleted"
        assert (end_of(frames).state, end_of(frames).outcome) == (None, "failure")

    def test_a_run_deleted_while_its_values_are_read_is_a_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.run_task("answer")
        reader.advance()
        history.delete()
        assert types(reader.advance()) == ["failure", "end"]
        assert reader.receive() == []


class TestNoResultTask:
    def test_a_failed_effective_leaf_is_a_failure(self) -> None:
        history = History(graph(TWO_LEAVES, {}))
        reader = SimulatedReader(history)
        history.set_task("left", "failed")
        assert failure_of(reader.catch_up()).task_id == "left"

    @pytest.mark.parametrize("state", ["skipped", "removed", "up_for_retry"])
    def test_a_leaf_that_is_only_skipped_removed_or_retried_is_none(self, state: str) -> None:
        history = History(graph(TWO_LEAVES, {}))
        reader = SimulatedReader(history)
        history.set_task("left", state)
        assert reader.catch_up() == []

    def test_failed_upstream_task_is_a_failure_before_airflow_fails_the_leaves(self) -> None:
        history = History(graph(TWO_LEAVES, {}))
        reader = SimulatedReader(history)
        history.set_task("ask", "failed")
        failure = failure_of(reader.catch_up())
        assert (failure.task_id, failure.predicted) == ("ask", True)

    def test_skipped_upstream_task_is_no_failure(self) -> None:
        history = History(graph(TWO_LEAVES, {}))
        reader = SimulatedReader(history)
        history.set_task("ask", "skipped")
        assert reader.catch_up() == []

    def test_the_stream_ends_with_the_run(self) -> None:
        history = History(graph(TWO_LEAVES, {}))
        reader = SimulatedReader(history)
        for task_id in TWO_LEAVES:
            history.run_task(task_id)
        assert reader.catch_up() == []
        history.set_run("success")
        frames = reader.catch_up()
        assert types(frames) == ["end"]
        assert (end_of(frames).state, end_of(frames).outcome) == ("success", "none")
        assert (end_of(frames).reason, end_of(frames).task_id) == ("no_result_task", None)

    @pytest.mark.parametrize(("may_fail_the_run", "expected"), [(True, ["failure", "end"]), (False, [])])
    def test_a_failed_teardown_counts_only_if_it_may_fail_the_run(
        self, expected: list[str], *, may_fail_the_run: bool
    ) -> None:
        tasks = {"left": ["tear_down"], "right": ["tear_down"], "tear_down": []}
        history = History(graph(tasks, {"tear_down": may_fail_the_run}))
        reader = SimulatedReader(history)
        history.set_task("tear_down", "failed")
        assert types(reader.catch_up()) == expected

    def test_without_a_graph_the_stream_ends_with_the_run(self) -> None:
        run = RunState(KEY, History().run)
        assert evaluate(run, WatchOptions()) == Undecided()


class TestEnd:
    def test_until_run_continues_after_the_result(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.run_task("answer", 1)
        assert types(reader.catch_up()) == ["result"]
        history.run_task("clean_up")
        assert reader.catch_up() == []
        history.set_run("success")
        assert types(reader.catch_up()) == ["end"]

    def test_run_that_succeeds_without_an_outcome_ends_with_none(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.set_run("success")
        frames = reader.catch_up()
        assert types(frames) == ["end"]
        assert (end_of(frames).outcome, end_of(frames).reason) == ("none", "run_ended")

    def test_the_end_waits_for_the_values(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.run_task("answer", 1)
        history.set_run("success")
        assert reader.advance() == []
        assert types(reader.receive()) == ["result", "end"]

    def test_no_frame_follows_the_end(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.run_task("answer")
        reader.catch_up()
        history.clear("answer")
        history.set_task("answer", "failed")
        assert reader.catch_up() == []
        assert reader.answer.add_values(reader.run, ("answer",), {}) == []

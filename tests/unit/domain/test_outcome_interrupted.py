"""Runs that Airflow or a person ends: timeouts, marks and `fail_fast`. All clients get the same outcome."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from stream_server.domain.graph import Graph
from stream_server.protocol.frames import AnyFrame, End, Failure
from support.builders import History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag, mapped_group, plain_group, setup, teardown

ABC = graph({"a": ["b"], "b": ["c"], "c": []}, {})
MAPPED = dag({"list": Node("square"), "square": Node(mapped_over="list")})
GROUP = dag(
    {"list": Node("g.square"), "g.square": Node()}, plain_group("list", g=mapped_group("g.square", over="list"))
)
PAIR = graph({"left": [], "right": []}, {})

Outcome = tuple[str, str | None, str | None]
"""Outcome, reason and task."""


def outcome_of(frames: list[AnyFrame]) -> Outcome:
    end = frames[-1]
    assert isinstance(end, End)
    failure = next((frame for frame in frames if isinstance(frame, Failure)), None)
    if failure is not None:
        return end.outcome, failure.reason, failure.task_id
    return end.outcome, end.reason, end.task_id


def all_outcomes(history: History, reader: SimulatedReader) -> set[Outcome]:
    """Return the outcomes of a client that watches, and of one that joins now."""
    joining = SimulatedReader(history, *reader.answer.options.result_tasks, confirm=reader.answer.options.confirm)
    return {outcome_of(reader.catch_up()), outcome_of([*joining.frames, *joining.receive()])}


def watch(history: History, *results: str, **options: Any) -> SimulatedReader:
    reader = SimulatedReader(history, *results, **options)
    assert reader.catch_up() == []
    return reader


class TestTimeout:
    def test_names_no_task(self) -> None:
        history = History(ABC)
        history.run_task("a")
        history.start("b")
        reader = watch(history)
        history.time_out()
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    @pytest.mark.parametrize("confirm", ["push", "success"])
    @pytest.mark.parametrize("mapped", [MAPPED, GROUP])
    @pytest.mark.parametrize("listed", [False, True])
    def test_is_no_empty_list(self, mapped: Graph, confirm: Literal["push", "success"], *, listed: bool) -> None:
        history = History(mapped)
        if listed:
            history.run_task("list", [1, 2])
        else:
            history.start("list")
        reader = watch(history, confirm=confirm)
        history.time_out()
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_is_no_part_of_the_result(self) -> None:
        history = History(PAIR)
        history.run_task("left", 1)
        history.start("right")
        reader = watch(history, "left", "right")
        history.time_out()
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_is_no_part_of_a_mapped_result(self) -> None:
        history = History(dag({"square": Node(mapped_over=[1, 2])}))
        history.expand("square", 2)
        history.run_task("square", 1, 0)
        history.start("square", 1)
        reader = watch(history)
        history.time_out()
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_keeps_a_result_that_is_complete(self) -> None:
        history = History(graph({"answer": ["log"], "log": []}, {}))
        history.run_task("answer", 1)
        history.start("log")
        history.time_out()
        assert results_of(SimulatedReader(history, "answer").receive()) == [{"answer": 1}]

    def test_keeps_the_failure_that_was_certain_before(self) -> None:
        history = History(graph({"a": ["b"], "b": ["c"], "c": [], "slow": []}, {}))
        reader = SimulatedReader(history, "c")
        history.start("slow")
        history.start("a")
        history.set_task("a", "failed")
        before = outcome_of(reader.catch_up())
        history.time_out()
        joining = SimulatedReader(history, "c")
        assert outcome_of(joining.frames) == before == ("failure", "task_failed", "a")

    def test_mapped_over_nothing_in_a_run_that_failed_by_itself_is_an_empty_list(self) -> None:
        history = History(dag({"list": Node("square"), "square": Node(mapped_over="list"), "log": Node()}))
        reader = SimulatedReader(history, "square")
        history.run_task("list", [])
        history.expand_to_nothing("square")
        assert results_of(reader.catch_up()) == [{"square": []}]
        history.start("log")
        history.set_task("log", "failed")
        history.set_run("failed")
        assert results_of(SimulatedReader(history, "square").receive()) == [{"square": []}]


class TestMarkedFailed:
    @pytest.mark.parametrize("running", ["b", "c"])
    def test_names_no_task(self, running: str) -> None:
        history = History(ABC)
        for task_id in "abc"["abc".index("a") : "abc".index(running)]:
            history.run_task(task_id)
        history.start(running)
        reader = watch(history)
        history.mark_run("failed")
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_is_no_part_of_the_result(self) -> None:
        history = History(PAIR)
        history.run_task("left", 1)
        reader = watch(history, "left", "right")
        history.mark_run("failed")
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_keeps_the_failure_of_a_task_that_failed_before(self) -> None:
        history = History(ABC)
        history.start("a")
        history.set_task("a", "failed")
        history.mark_run("failed")
        assert outcome_of(SimulatedReader(history).frames) == ("failure", "task_failed", "a")

    @pytest.mark.parametrize("state", ["failed", "success"])
    def test_run_with_a_pending_teardown_ends_later(self, state: str) -> None:
        """The mark does not end the run before its teardown, and Airflow then decides by the leaves."""
        history = History(dag({"up": setup("work", "down"), "work": Node("down"), "down": teardown()}))
        history.run_task("up")
        history.start("work")
        reader = watch(history)
        history.set_task("work", "failed")
        assert outcome_of(reader.catch_up()) == ("failure", "task_failed", "work")
        history.run_task("down")
        history.set_run(state)
        assert outcome_of(SimulatedReader(history).frames) == ("failure", "task_failed", "work")


class TestMarkedSuccess:
    def test_a_task_that_a_removed_one_may_have_skipped_is_skipped(self) -> None:
        history = History(dag({"numbers": Node("work"), "work": Node(), "other": Node()}))
        history.run_task("other")
        reader = watch(history, "work")
        history.set_task("numbers", "skipped")
        with history.transaction():
            history.set_task("numbers", "removed")
            history.skip_from_outside("work")
        history.set_run("success")
        assert all_outcomes(history, reader) == {("none", "task_skipped", "work")}

    def test_a_task_that_a_cleared_one_further_up_has_skipped_is_skipped(self) -> None:
        """A short circuit skips all tasks below that have not ended, also below one that has."""
        history = History(dag({"check": Node("a", _can_skip_downstream=True), "a": Node("work"), "work": Node()}))
        history.run_task("check")
        history.run_task("a")
        history.clear("check")
        reader = watch(history, "work")
        history.start("check")
        with history.transaction():
            history.skip_from_outside("work")
            history.succeed("check")
            history.set_run("success")
        assert all_outcomes(history, reader) == {("none", "task_skipped", "work")}

    def test_has_no_outcome(self) -> None:
        history = History(ABC)
        history.run_task("a")
        history.start("b")
        reader = watch(history)
        history.mark_run("success")
        assert all_outcomes(history, reader) == {("none", "run_ended", None)}

    def test_a_running_result_task_has_no_value(self) -> None:
        history = History(ABC)
        history.start("c")
        reader = watch(history)
        history.mark_run("success")
        assert all_outcomes(history, reader) == {("none", "run_ended", None)}

    def test_is_no_part_of_the_result(self) -> None:
        history = History(PAIR)
        history.run_task("left", 1)
        reader = watch(history, "left", "right")
        history.mark_run("success")
        assert all_outcomes(history, reader) == {("none", "run_ended", None)}

    def test_a_value_that_was_pushed_before_is_the_result(self) -> None:
        history = History(ABC)
        history.start("c")
        reader = watch(history, confirm="success")
        history.push("c", 3)
        history.mark_run("success")
        assert results_of(reader.catch_up()) == [{"c": 3}]

    def test_takes_back_a_predicted_failure(self) -> None:
        history = History(ABC)
        reader = SimulatedReader(history, until="run")
        history.start("a")
        history.set_task("a", "failed")
        assert types(reader.catch_up()) == ["failure"]
        history.mark_run("success")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "end"]
        assert outcome_of(frames) == outcome_of(SimulatedReader(history).frames) == ("none", "run_ended", None)

    def test_a_task_that_a_branch_skipped_before_is_named(self) -> None:
        history = History(dag({"branch": Node("left", _can_skip_downstream=True), "left": Node()}))
        reader = watch(history)
        history.start("branch")
        history.skip_from_outside("left")
        history.succeed("branch")
        history.set_run("success")
        assert all_outcomes(history, reader) == {("none", "task_skipped", "left")}

    def test_a_task_that_was_skipped_before_the_run_started_again_is_named(self) -> None:
        """The branch that skipped it may be gone with another DAG version."""
        history = History(PAIR)
        history.set_run("running")
        reader = watch(history, "left")
        with history.transaction():  # All of it takes less than a second.
            history.skip_from_outside("left")
            history.run_task("right")
            history.set_run("success")
            history.clear("right")
            history.set_run("running")
            history.run_task("right")
            history.set_run("success")
        assert all_outcomes(history, reader) == {("none", "task_skipped", "left")}

    def test_a_task_that_is_marked_failed_after_the_run_is_a_failure(self) -> None:
        history = History(PAIR)
        history.run_task("left", 1)
        history.run_task("right", 2)
        history.set_run("success")
        history.set_task("left", "failed")
        joining = SimulatedReader(history, "left", "right")
        assert outcome_of([*joining.frames, *joining.receive()]) == ("failure", "task_failed", "left")


class TestFailedTeardown:
    """It ends after the result, which remains valid, also where it fails the run."""

    @pytest.mark.parametrize("fails_run", [False, True])
    def test_does_not_revoke_the_result(self, *, fails_run: bool) -> None:
        down = teardown(on_failure_fail_dagrun=fails_run)
        history = History(dag({"up": setup("answer", "down"), "answer": Node("down"), "down": down}))
        reader = watch(history, until="run")
        for task_id in ("up", "answer"):
            history.run_task(task_id, 1)
        assert results_of(reader.catch_up()) == [{"answer": 1}]
        history.start("down")
        history.set_task("down", "failed")
        assert types(reader.catch_up()) == []
        history.set_run("failed" if fails_run else "success")
        assert all_outcomes(history, reader) == {("result", None, None)}

    def test_fails_a_run_that_was_stopped_before_the_result(self) -> None:
        down = teardown(on_failure_fail_dagrun=True)
        history = History(dag({"up": setup("answer", "down"), "answer": Node("down"), "down": down}))
        history.run_task("up", 1)
        history.start("answer")
        reader = watch(history)
        history.set_task("answer", "failed")  # as `POST …/cancel` does while the teardown has yet to run
        history.start("down")
        history.set_task("down", "failed")
        history.set_run("failed")
        assert all_outcomes(history, reader) == {("failure", "task_failed", "answer")}


class TestFailFast:
    def test_what_it_skips_is_no_part_of_the_result(self) -> None:
        history = History(dag({"left": Node(), "right": Node(), "bad": Node()}, fail_fast=True))
        history.run_task("left", 1)
        history.start("bad")
        reader = watch(history, "left", "right")
        history.skip_from_outside("right")
        assert reader.catch_up() == []
        history.set_task("bad", "failed")
        history.set_run("failed")
        assert all_outcomes(history, reader) == {("failure", "task_failed", "bad")}

    def test_skipped_result_task_is_not_named(self) -> None:
        history = History(dag({"bad": Node(), "answer": Node()}, fail_fast=True))
        history.start("bad")
        reader = watch(history, "answer")
        history.skip_from_outside("answer")
        assert reader.catch_up() == []
        history.set_run("failed")
        assert all_outcomes(history, reader) == {("failure", "run_failed", None)}

    def test_once_all_have_ended_nothing_overwrites_a_failure(self) -> None:
        history = History(dag({"bad": Node("below"), "below": Node(), "other": Node()}, fail_fast=True))
        history.run_task("other", 1)
        with history.transaction():
            history.set_task("bad", "failed")  # as a person marks it, which stops no other task
        readers = [watch(history, *names) for names in ((), ("below",))]
        assert [reader.catch_up() for reader in readers] == [[], []]
        history.set_task("below", "upstream_failed")
        for reader in readers:
            assert outcome_of(reader.catch_up()) == ("failure", "task_failed", "bad")

    def test_as_long_as_something_runs_it_may_skip_a_failed_leaf(self) -> None:
        history = History(dag({"bad": Node("below"), "below": Node(), "other": Node()}, fail_fast=True))
        history.set_task("bad", "failed")
        history.start("other")
        reader = watch(history, "below")
        history.set_task("below", "upstream_failed")
        assert reader.catch_up() == []

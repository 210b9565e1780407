"""Values of earlier tries, drafts, and Airflow 3.3's own marks beside a leaf that ends early."""

from __future__ import annotations

import pytest

from stream_server.domain.outcome import ResultKnown, Undecided, WatchOptions, evaluate
from stream_server.protocol.frames import End, Failure
from support.builders import History, SimulatedReader, results_of, types
from support.serialized_dags import Node, dag, teardown


def second_try(history: History) -> None:
    """Start a second try of `answer`, while the worker of the first one is still alive."""
    history.start("answer")
    history.set_task("answer", "up_for_retry")
    history.start("answer")


class TestValueOfAnEarlierTry:
    def test_confirmed_result_is_never_the_value_of_a_try_that_failed(self) -> None:
        history = History()
        reader = SimulatedReader(history, confirm="success")
        second_try(history)
        history.push("answer", "old")
        assert reader.catch_up() == []
        history.set_task("answer", "failed")
        frames = reader.catch_up()
        assert types(frames) == ["failure", "end"]
        assert isinstance(frames[0], Failure)
        assert (frames[0].reason, frames[0].try_number) == ("task_failed", 2)

    def test_pushed_result_is_taken_back_when_the_current_try_fails(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        second_try(history)
        history.push("answer", "old")
        assert results_of(reader.catch_up()) == [{"answer": "old"}]
        history.set_task("answer", "failed")
        assert types(reader.catch_up()) == ["reset", "snapshot", "failure"]


class TestDraft:
    def test_pushed_result_is_the_draft(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.push("answer", "draft")
        frames = reader.catch_up()
        assert results_of(frames) == [{"answer": "draft"}]
        assert isinstance(frames[-1], End)

    @pytest.mark.parametrize("state", ["success", "failed"])
    def test_confirmed_result_is_the_final_value_or_the_failure(self, state: str) -> None:
        history = History()
        reader = SimulatedReader(history, confirm="success")
        history.start("answer")
        history.push("answer", "draft")
        assert reader.catch_up() == []
        if state == "success":
            history.push("answer", "final")
        history.set_task("answer", state)
        frames = reader.catch_up()
        assert results_of(frames) == ([{"answer": "final"}] if state == "success" else [])
        assert types(frames) == (["result", "end"] if state == "success" else ["failure", "end"])


class TestLeafThatEndsEarly:
    GRAPH = dag({"fast": Node("first"), "slow": Node("first"), "first": Node(trigger_rule="one_success")})

    def early(self, marked: tuple[str, ...] | None) -> History:
        history = History(self.GRAPH)
        history.marked = marked
        history.run_task("fast", 1)
        history.run_task("first", 2)
        return history

    def test_it_waits_for_tasks_that_may_bear_the_mark(self) -> None:
        history = self.early(("slow",))
        assert evaluate(history.state(), WatchOptions()) == Undecided()
        history.run_task("slow", 3)
        assert evaluate(history.state(), WatchOptions()) == Undecided()
        history.set_run("success")
        assert results_of(SimulatedReader(history).receive()) == [{"slow": 3}]

    def test_it_answers_when_no_task_can_bear_the_mark(self) -> None:
        history = self.early(())
        assert evaluate(history.state(), WatchOptions()) == Undecided()
        history.run_task("slow", 3)
        assert results_of(SimulatedReader(history).receive()) == [{"first": 2}]

    def test_it_answers_at_once_before_airflow_3_3(self) -> None:
        assert isinstance(evaluate(self.early(None).state(), WatchOptions()), ResultKnown)

    def test_it_answers_at_once_if_earlier_runs_have_shown_the_others(self) -> None:
        history = self.early(())
        history.earlier_marks = {"fast": False, "slow": False, "first": False}
        assert isinstance(evaluate(history.state(), WatchOptions()), ResultKnown)

    def test_tasks_that_the_leaf_has_waited_for_are_not_looked_at(self) -> None:
        """The rules of the DAG have ended them, whatever the tables have."""
        history = History()
        history.marked = ()
        history.start("answer")
        history.push("answer", 1)
        assert results_of(SimulatedReader(history).receive()) == [{"answer": 1}]

    def test_a_task_that_was_cleared_while_the_leaf_waited_is_waited_for(self) -> None:
        history = History(dag({"first": Node("answer"), "answer": Node()}))
        history.marked = ("first",)
        history.start("first")
        history.succeed("first")
        history.start("answer")
        history.clear("first")
        history.push("answer", 1)
        history.succeed("answer")
        reader = SimulatedReader(history)
        assert results_of(reader.receive()) == []
        history.run_task("first", 2)
        history.set_run("success")
        assert results_of(reader.catch_up()) == [{"first": 2}]

    def test_teardowns_are_not_waited_for(self) -> None:
        history = History(dag({"answer": Node("down"), "down": teardown()}))
        history.marked = ()
        history.run_task("answer", 1)
        assert results_of(SimulatedReader(history).receive()) == [{"answer": 1}]

"""Outcomes that are sent before Airflow writes them, or after it has confirmed them."""

from __future__ import annotations

from stream_server.protocol.frames import AnyFrame, End, Failure, Result
from support.builders import History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag


def failure_of(frames: list[AnyFrame]) -> Failure:
    (failure,) = [frame for frame in frames if isinstance(frame, Failure)]
    return failure


class TestConfirmed:
    def test_confirmed_result_is_sent_when_its_task_succeeds(self) -> None:
        history = History()
        reader = SimulatedReader(history, confirm="success")
        history.start("answer")
        history.push("answer", 42)
        assert reader.catch_up() == []
        history.succeed("answer")
        frames = reader.catch_up()
        assert results_of(frames) == [{"answer": 42}]
        assert isinstance(frames[0], Result)
        assert frames[0].seq == history.journal[-1].seq

    def test_confirmed_result_is_not_sent_for_a_try_that_fails_after_its_push(self) -> None:
        history = History()
        reader = SimulatedReader(history, confirm="success")
        history.start("answer")
        history.push("answer", "first")
        reader.catch_up()
        history.set_task("answer", "up_for_retry")
        assert reader.catch_up() == []
        history.run_task("answer", "second")
        assert results_of(reader.catch_up()) == [{"answer": "second"}]

    def test_all_instances_of_a_mapped_task_must_have_succeeded(self) -> None:
        history = History(graph({"square": []}, {}))
        reader = SimulatedReader(history, confirm="success")
        history.expand("square", 2)
        history.run_task("square", 0, 0)
        history.start("square", 1)
        history.push("square", 1, 1)
        assert reader.catch_up() == []
        history.succeed("square", 1)
        assert results_of(reader.catch_up()) == [{"square": [0, 1]}]


class TestPredicted:
    def test_failure_is_sent_before_airflow_fails_the_result_task(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("ask")
        history.set_task("ask", "failed")
        row = history.journal[-1]
        frames = reader.catch_up()
        failure = failure_of(frames)
        assert (failure.reason, failure.task_id, failure.state) == ("task_failed", "ask", "failed")
        assert (failure.map_index, failure.try_number) == (-1, 1)
        assert (failure.predicted, failure.seq, failure.at) == (True, row.seq, row.at)
        assert isinstance(frames[-1], End)
        assert frames[-1].outcome == "failure"

    def test_predicted_failure_is_not_sent_again_when_it_happens(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.set_task("ask", "failed")
        assert types(reader.catch_up()) == ["failure"]
        history.set_task("answer", "upstream_failed")
        assert reader.catch_up() == []

    def test_later_subscriber_gets_the_root_cause_too(self) -> None:
        history = History()
        history.set_task("ask", "failed")
        history.set_task("answer", "upstream_failed")
        failure = failure_of(SimulatedReader(history).initial_frames)
        assert (failure.task_id, failure.predicted, failure.seq) == ("ask", False, None)

    def test_predicted_skip_is_no_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.set_task("ask", "skipped")
        assert reader.catch_up() == []

    def test_task_that_waits_for_failures_is_no_failure_if_all_succeed(self) -> None:
        history = History(dag({"ask": Node("mend"), "mend": Node(trigger_rule="one_failed")}))
        reader = SimulatedReader(history, "mend")
        history.run_task("ask")
        assert reader.catch_up() == []

    def test_task_that_will_be_retried_is_no_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("ask")
        history.set_task("ask", "up_for_retry")
        assert reader.catch_up() == []

    def test_one_failed_upstream_instance_is_enough(self) -> None:
        history = History(dag({"square": Node("sum", mapped_over=[1, 2, 3]), "sum": Node()}))
        reader = SimulatedReader(history)
        history.expand("square", 3)
        history.start("square", 1)
        history.set_task("square", "failed", 1)
        failure = failure_of(reader.catch_up())
        assert (failure.task_id, failure.map_index, failure.predicted) == ("square", 1, True)


class TestResultTaskWithoutSuccess:
    """A result task that can only fail or be skipped, in a run that is certain to fail."""

    def test_failure_is_sent_before_it_is_known_which_of_both_happens(self) -> None:
        history = History(graph({"fetch": ["a", "log"], "a": ["answer"], "b": ["answer"], "log": [], "answer": []}, {}))
        reader = SimulatedReader(history, "answer", until="run")
        history.start("b")
        history.start("fetch")
        history.set_task("fetch", "failed")
        failure = failure_of(reader.catch_up())
        assert (failure.task_id, failure.predicted) == ("fetch", True)
        # The loop that fails `a` skips `answer`, which does not see `a` yet.
        history.set_task("b", "skipped")
        for task_id, state in (("a", "upstream_failed"), ("log", "upstream_failed"), ("answer", "skipped")):
            history.set_task(task_id, state)
        history.set_run("failed")
        assert types(reader.catch_up()) == ["end"]

    def test_nothing_is_sent_while_the_run_may_succeed(self) -> None:
        history = History(graph({"fetch": ["a"], "a": ["answer"], "b": ["answer"], "answer": []}, {}))
        reader = SimulatedReader(history, "answer", until="run")
        history.start("b")
        history.start("fetch")
        history.set_task("fetch", "failed")
        assert reader.catch_up() == []

    def test_nothing_is_sent_while_another_result_task_may_have_a_value(self) -> None:
        history = History(graph({"fetch": ["a", "log"], "a": ["x"], "b": ["x"], "log": [], "x": [], "y": []}, {}))
        reader = SimulatedReader(history, "x", "y", until="run")
        history.start("b")
        history.start("y")
        history.push("y", 1)
        history.start("fetch")
        history.set_task("fetch", "failed")
        assert reader.catch_up() == []

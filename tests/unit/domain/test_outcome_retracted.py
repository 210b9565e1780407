"""Outcomes that users and failing tries retract, and values that are no result (`airflow-facts` 2.5)."""

from __future__ import annotations

import pytest

from stream_server.domain.outcome import ResultKnown, WatchOptions, evaluate
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.protocol.frames import AnyFrame, Failure, Reset, Snapshot
from support.builders import History, SimulatedReader, graph, results_of, types


def failure_of(frames: list[AnyFrame]) -> Failure:
    (failure,) = [frame for frame in frames if isinstance(frame, Failure)]
    return failure


class TestRetracted:
    def with_result(self) -> tuple[History, SimulatedReader]:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.start("answer")
        history.push("answer", "first")
        assert results_of(reader.catch_up()) == [{"answer": "first"}]
        return history, reader

    @staticmethod
    def reason(frames: list[AnyFrame]) -> str:
        assert isinstance(frames[0], Reset)
        assert isinstance(frames[1], Snapshot)
        return frames[0].reason

    def test_a_try_that_fails_after_its_push_is_retried(self) -> None:
        history, reader = self.with_result()
        history.set_task("answer", "up_for_retry")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot"]
        assert self.reason(frames) == "retried"
        history.run_task("answer", "second")
        assert results_of(reader.catch_up()) == [{"answer": "second"}]

    def test_a_task_that_fails_for_good_after_its_push_is_a_failure(self) -> None:
        history, reader = self.with_result()
        history.set_task("answer", "failed")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "failure"]
        assert self.reason(frames) == "revoked"

    @pytest.mark.parametrize("counted", [True, False])
    def test_clear_retracts_the_result(self, *, counted: bool) -> None:
        history, reader = self.with_result()
        history.succeed("answer")
        history.clear("answer", counted=counted)
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot"]
        assert self.reason(frames) == "cleared"

    def test_clear_of_a_running_task_retracts_the_result(self) -> None:
        history, reader = self.with_result()
        history.clear("answer", counted=False)
        assert history.rows["answer", -1].state == "restarting"
        assert self.reason(reader.catch_up()) == "cleared"

    def test_failed_task_marked_as_success_retracts_the_failure(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.set_task("answer", "failed")
        assert types(reader.catch_up()) == ["failure"]
        history.set_task("answer", "success")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "result"]
        assert self.reason(frames) == "revoked"
        assert results_of(frames) == [{"answer": None}]

    @pytest.mark.parametrize("spread", [False, True])
    def test_predicted_failure_is_retracted_when_the_root_cause_is_marked_as_success(self, *, spread: bool) -> None:
        history, reader = self.predicted_failure(spread=spread)
        history.set_task("ask", "success")
        if spread:
            history.set_task("answer", None)
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot"]
        assert self.reason(frames) == "revoked"
        history.run_task("answer", "after all")
        assert results_of(reader.catch_up()) == [{"answer": "after all"}]

    @pytest.mark.parametrize("spread", [False, True])
    @pytest.mark.parametrize("counted", [False, True])
    @pytest.mark.parametrize("at_once", [False, True])
    def test_predicted_failure_is_retracted_when_the_root_cause_is_cleared(
        self, *, spread: bool, counted: bool, at_once: bool
    ) -> None:
        history, reader = self.predicted_failure(spread=spread)
        history.clear("ask", *["answer"] * spread, counted=counted)
        if at_once:
            history.run_task("ask")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot"]
        assert self.reason(frames) == "cleared"

    def test_failure_names_another_root_cause_when_its_own_is_marked_as_success(self) -> None:
        history = History(graph({"left": ["join"], "right": ["join"], "join": []}, {}))
        reader = SimulatedReader(history, until="run")
        history.set_task("left", "failed")
        history.set_task("right", "failed")
        assert failure_of(reader.catch_up()).task_id == "left"
        history.set_task("left", "success")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "failure"]
        assert failure_of(frames).task_id == "right"
        assert failure_of(SimulatedReader(history).frames).task_id == "right"
        history.set_task("right", "success")
        assert types(reader.catch_up()) == ["reset", "snapshot"]

    def test_failure_keeps_its_root_cause_when_more_fails(self) -> None:
        history = History(graph({"right": ["mid"], "mid": ["join"], "left": ["join"], "join": []}, {}))
        history.run_task("right")
        reader = SimulatedReader(history, until="run")
        history.set_task("left", "failed")
        assert failure_of(reader.catch_up()).task_id == "left"
        history.set_task("mid", "failed")
        assert reader.catch_up() == []
        assert failure_of(SimulatedReader(history).frames).task_id == "left"

    @staticmethod
    def predicted_failure(*, spread: bool) -> tuple[History, SimulatedReader]:
        """Return a reader with a predicted failure of `answer`; Airflow may have written it since."""
        history = History()
        reader = SimulatedReader(history, until="run")
        history.start("ask")
        history.set_task("ask", "failed")
        assert types(reader.catch_up()) == ["failure"]
        if spread:
            history.set_task("answer", "upstream_failed")
            assert reader.catch_up() == []
        return history, reader

    def test_clear_in_one_batch_with_a_new_result_retracts_the_old_one(self) -> None:
        history, reader = self.with_result()
        history.succeed("answer")
        history.clear("answer")
        history.run_task("answer", "second")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "result"]
        assert results_of(frames) == [{"answer": "second"}]

    def test_retry_in_one_batch_with_a_new_result_retracts_the_old_one(self) -> None:
        history, reader = self.with_result()
        history.set_task("answer", "up_for_retry")
        history.run_task("answer", "second")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "result"]
        assert results_of(frames) == [{"answer": "second"}]

    def test_uncounted_clear_in_one_batch_with_a_new_result_retracts_the_old_one(self) -> None:
        history, reader = self.with_result()
        history.succeed("answer")
        history.clear("answer", counted=False)
        history.run_task("answer", "second")
        frames = reader.catch_up()
        assert types(frames) == ["reset", "snapshot", "result"]
        assert results_of(frames) == [{"answer": "second"}]

    def test_clear_before_any_outcome_sends_a_reset(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.clear("ask")
        assert self.reason(reader.catch_up()) == "cleared"

    def test_clear_sends_one_reset(self) -> None:
        history, reader = self.with_result()
        history.clear("ask")
        assert types(reader.catch_up()) == ["reset", "snapshot", "result"]
        history.run_task("ask")
        assert reader.catch_up() == []

    def test_result_stays_valid_while_other_tasks_are_cleared_uncounted(self) -> None:
        history, reader = self.with_result()
        history.clear("ask", counted=False)
        assert reader.catch_up() == []


class TestTraps:
    def test_push_of_a_killed_task_is_no_result(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.start("answer")
        history.set_task("answer", "failed")
        reader.catch_up()
        history.push("answer", "too late")
        assert reader.catch_up() == []

    def test_push_between_two_tries_is_no_result(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.set_task("answer", "up_for_retry")
        history.push("answer", "too late")
        history.start("answer")
        assert reader.catch_up() == []

    def test_push_and_failure_in_one_batch_is_a_failure_only(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.push("answer")
        history.set_task("answer", "failed")
        assert types(reader.catch_up()) == ["failure", "end"]

    def test_try_that_fails_while_its_value_is_read_has_no_result(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.push("answer")
        assert reader.advance() == []
        assert reader.answer.values_needed == {"answer"}
        history.set_task("answer", "up_for_retry")
        assert reader.advance() == []
        assert reader.receive() == []

    def test_a_value_that_is_gone_from_a_running_task_is_waited_for_again(self) -> None:
        history = History()
        reader = SimulatedReader(history)
        history.start("answer")
        history.push("answer")
        reader.advance()
        del history.xcoms["answer", -1]
        assert reader.receive() == []
        history.push("answer", "again")
        assert results_of(reader.catch_up()) == [{"answer": "again"}]

    def test_values_of_other_tasks_than_those_needed_are_not_enough(self) -> None:
        history = History()
        history.run_task("ask", 1)
        history.run_task("answer", 2)
        run = history.state()
        tracker = OutcomeTracker(WatchOptions(result_tasks=("ask", "answer")))
        assert tracker.add_values(run, {"ask"}, history.values({"ask"})) == []
        assert tracker.values_needed == {"ask", "answer"}

    def test_late_subscriber_gets_the_outcome(self) -> None:
        history = History()
        reader = SimulatedReader(history, until="run")
        history.run_task("answer", 1)
        sent = reader.catch_up()
        assert types(reader.answer.initial_frames(reader.run)) == ["snapshot", "result"]
        assert reader.answer.initial_frames(reader.run)[1:] == sent

    def test_decision_names_the_last_row_that_was_needed(self) -> None:
        history = History()
        run = history.state()
        history.run_task("ask")
        history.run_task("answer")
        for transition in history.journal:
            run.apply(transition)
        decision = evaluate(run, WatchOptions(result_tasks=("ask", "answer")))
        assert isinstance(decision, ResultKnown)
        assert decision.source.seq == max(row.seq for row in history.journal if row.xcom_key)

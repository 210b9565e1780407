from __future__ import annotations

import msgspec
import pytest

from stream_server.domain.outcome import WatchOptions
from stream_server.http.endpoints.outcome_body import build_answer
from stream_server.protocol.bodies import RunAnswer
from support.builders import KEY, History, SimulatedReader


def answer_of(reader: SimulatedReader) -> RunAnswer:
    return build_answer(KEY, reader.answer, reader.run)


def test_outcome_is_pending_until_the_end_is_sent() -> None:
    reader = SimulatedReader(History())
    reader.history.start("ask")
    reader.catch_up()
    answer = answer_of(reader)
    assert (answer.outcome, answer.state) == ("pending", "queued")
    assert answer.tasks == {"running": 1, "no_status": len(reader.run.tasks) - 1}


def test_result_is_the_one_that_was_sent() -> None:
    reader = SimulatedReader(History())
    reader.history.run_task("answer", {"text": "because"})
    reader.catch_up()
    answer = answer_of(reader)
    assert answer.outcome == "result"
    assert answer.results == {"answer": msgspec.Raw(b'{"text":"because"}')}
    assert (answer.references, answer.withheld, answer.failure) == (None, False, None)


def test_later_changes_do_not_change_the_answer() -> None:
    reader = SimulatedReader(History())
    reader.history.run_task("answer", 1)
    reader.catch_up()
    before = answer_of(reader)
    reader.history.clear("answer")
    reader.history.set_run("running")
    reader.catch_up()
    assert answer_of(reader) == before


def test_retracted_result_is_left_out() -> None:
    reader = SimulatedReader(History(), until="run")
    reader.history.run_task("answer", 1)
    reader.catch_up()
    reader.history.clear("answer")
    reader.history.set_run("failed")
    reader.catch_up()
    answer = answer_of(reader)
    assert (answer.outcome, answer.results) == ("failure", None)
    assert answer.failure is not None
    assert answer.failure.reason == "run_failed"


def test_values_are_left_out_for_callers_that_may_not_read_them() -> None:
    reader = SimulatedReader(History())
    reader.answer.options = WatchOptions(redact_values=True)
    reader.history.run_task("answer", "secret")
    reader.catch_up()
    answer = answer_of(reader)
    assert (answer.outcome, answer.results, answer.withheld) == ("result", {}, True)


@pytest.mark.parametrize("state", ["failed", "removed"])
def test_failure_names_its_root_cause(state: str) -> None:
    reader = SimulatedReader(History())
    reader.history.start("answer")
    reader.history.set_task("answer", state)
    reader.catch_up()
    answer = answer_of(reader)
    assert answer.outcome == "failure"
    assert answer.failure is not None
    assert (answer.failure.reason, answer.failure.task_id) == (f"task_{state}", "answer")

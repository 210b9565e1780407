"""Properties of any history of a run, however it is read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain import outcome, run_state
from stream_server.domain.evidence import lacks_evidence
from stream_server.domain.outcome import FailureKnown, ResultKnown, Undecided, evaluate, select_result_tasks
from stream_server.protocol.frames import AnyFrame, End, Failure, Reset, Result, Snapshot
from support.airflow_sql import CHAIN
from support.builders import History, SimulatedReader, graph
from support.run_moves import Move, apply_move, run_histories, run_histories_of

GRAPHS = (
    graph(CHAIN),
    graph({"ask": ["answer"], "answer": []}, {}),
    graph({"answer": []}, {}),
    graph({"ask": ["left", "right"], "left": [], "right": []}, {}),
    graph({"left": ["tear_down"], "right": ["tear_down"], "tear_down": []}, {"tear_down": True}),
)


@st.composite
def watched(draw: st.DrawFn) -> SimulatedReader:
    """A reader with any options, of any DAG."""
    dag = draw(st.sampled_from(GRAPHS))
    results = draw(st.lists(st.sampled_from(sorted(dag.tasks)), unique=True, max_size=2))
    until: Literal["result", "run"] = draw(st.sampled_from(["result", "run"]))
    history = History(dag)
    history.marked = draw(st.none() | st.sets(st.sampled_from(sorted(dag.tasks))))
    if history.marked is not None and draw(st.booleans()):
        shown = draw(st.sets(st.sampled_from(sorted(dag.tasks))))
        history.earlier_marks = {task_id: task_id in history.marked for task_id in shown}
    return SimulatedReader(history, *results, until=until)


def play(reader: SimulatedReader, moves: list[Move]) -> Iterator[list[AnyFrame]]:
    """Yield the frames of each step. Values that are needed may come late."""
    yield reader.initial_frames
    for move in moves:
        if move[0] == "read":
            yield reader.advance()
        elif move[0] == "fetch":
            yield reader.receive()
        else:
            apply_move(reader.history, move)
    yield reader.catch_up()


@given(watched(), run_histories)
def test_outcome_is_retracted_before_another_is_sent(reader: SimulatedReader, moves: list[Move]) -> None:
    sent = False
    before: AnyFrame | None = None
    for frame in (frame for frames in play(reader, moves) for frame in frames):
        assert not isinstance(before, End), "nothing comes after the end"
        assert isinstance(frame, Snapshot) == isinstance(before, Reset), "a snapshot follows each reset"
        if isinstance(frame, Result | Failure):
            assert not sent, "one outcome at a time"
            sent = True
        elif isinstance(frame, Reset):
            sent = False
        before = frame


@given(watched(), run_histories)
def test_result_is_sent_only_if_all_result_tasks_have_one_in_their_current_try(
    reader: SimulatedReader, moves: list[Move]
) -> None:
    for frames in play(reader, moves):
        for frame in frames:
            if isinstance(frame, Result):
                tasks = set(select_result_tasks(reader.run, reader.answer.options))
                # Skipped tasks are left out.
                tasks -= {one for one in tasks if reader.run.tasks[one].by_state.keys() <= {"skipped", "removed"}}
                assert frame.results.keys() == tasks
                for task_id in tasks:
                    instances = reader.run.tasks[task_id].values()
                    present = [one for one in instances if one.state not in {"removed", "skipped"}]
                    assert present
                    assert all(one.state == "success" or (one.state == "running" and one.pushed) for one in present)


@given(watched(), run_histories)
def test_failure_is_sent_only_if_something_failed(reader: SimulatedReader, moves: list[Move]) -> None:
    for frames in play(reader, moves):
        for frame in frames:
            if isinstance(frame, Failure) and frame.task_id is not None:
                assert frame.map_index is not None
                instance = reader.run.tasks[frame.task_id][frame.map_index]
                assert (instance.state, instance.try_number) == (frame.state, frame.try_number)
                assert instance.state in {"failed", "upstream_failed", "removed"}
            elif isinstance(frame, Failure):
                assert reader.run.is_deleted or reader.run.info.state == "failed"


@given(watched(), run_histories)
def test_sent_outcome_equals_the_decision_if_no_value_is_needed(reader: SimulatedReader, moves: list[Move]) -> None:
    for _ in play(reader, moves):
        if not reader.answer.values_needed and not reader.answer.has_ended:
            decision, sent = evaluate(reader.run, reader.answer.options), reader.answer.sent_outcome
            assert isinstance(sent, Result) == isinstance(decision, ResultKnown)
            assert isinstance(sent, Failure) == isinstance(decision, FailureKnown)


@given(watched(), run_histories)
def test_stream_ends_if_and_only_if_no_frame_can_follow(reader: SimulatedReader, moves: list[Move]) -> None:
    ended = False
    for frames in play(reader, moves):
        for frame in frames:
            if isinstance(frame, End):
                sent = reader.answer.sent_outcome
                outcome = {Result: "result", Failure: "failure", type(None): "none"}[type(sent)]
                assert frame.outcome == outcome
                assert frame.state == (None if reader.run.is_deleted else reader.run.info.state)
                ended = True
        if not reader.answer.values_needed and not ended:
            assert not reader.run.has_ended
            assert reader.answer.options.until == "run" or reader.answer.sent_outcome is None


@given(run_histories_of("read", "fetch", "start", "push", "succeed", "run", "retry", "clear"))
def test_valid_result_is_that_of_the_current_tries(moves: list[Move]) -> None:
    reader = SimulatedReader(History(graph({"answer": []}, {})), until="run")
    tries: dict[tuple[str, int], int] = {}
    for frames in play(reader, moves):
        result = reader.answer.sent_outcome
        if not isinstance(result, Result) or reader.answer.values_needed or reader.answer.has_ended:
            continue
        now = {
            (task_id, index): one.try_number
            for task_id in result.results
            for index, one in reader.run.tasks[task_id].items()
        }
        if result in frames:
            tries = now
        assert now == tries, "a new try is sent"


@given(watched(), run_histories)
def test_late_subscriber_gets_the_outcome_and_the_end_that_others_got(
    reader: SimulatedReader, moves: list[Move]
) -> None:
    last_frames: list[AnyFrame] = []
    for frames in play(reader, moves):
        for frame in frames:
            if isinstance(frame, Reset):
                last_frames = []
            elif isinstance(frame, Result | Failure | End):
                last_frames.append(frame)
        _, *opening = reader.answer.initial_frames(reader.run)
        assert opening == [*reader.run.output.frames, *last_frames]


@given(watched(), run_histories)
def test_a_run_that_lacks_evidence_is_undecided_by_all_rules(reader: SimulatedReader, moves: list[Move]) -> None:
    for _ in play(reader, moves):
        options = reader.answer.options
        if not reader.run.is_deleted and lacks_evidence(reader.run, select_result_tasks(reader.run, options)):
            with mock.patch.object(outcome, "lacks_evidence", return_value=False):
                assert isinstance(evaluate(reader.run, options), Undecided)


@given(watched(), run_histories)
def test_a_large_run_has_the_same_outcome(reader: SimulatedReader, moves: list[Move]) -> None:
    for _ in play(reader, moves):
        options = reader.answer.options
        decision = evaluate(reader.run, options)
        with mock.patch.object(run_state, "MAX_LATE_JUDGEMENTS", 0):
            assert evaluate(reader.run, options) == decision
            assert evaluate(reader.run, options) == decision

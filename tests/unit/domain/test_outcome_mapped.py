"""Outcomes of mapped tasks: a list by `map_index`, however late, long or short it becomes."""

from __future__ import annotations

import pytest

from stream_server.domain.outcome import ReturnValue, WatchOptions
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.protocol.frames import AnyFrame, Failure, Result
from support.builders import History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag

MAPPED = dag({"list": Node("square"), "square": Node(mapped_over="list")})


def failure_of(frames: list[AnyFrame]) -> Failure:
    (failure,) = [frame for frame in frames if isinstance(frame, Failure)]
    return failure


class TestMapped:
    def mapped(self, length: int) -> tuple[History, SimulatedReader]:
        history = History(graph({"square": []}, {}))
        reader = SimulatedReader(history)
        history.expand("square", length)
        return history, reader

    def test_result_of_a_mapped_task_is_a_list_by_index(self) -> None:
        history, reader = self.mapped(3)
        for index in (2, 0):
            history.run_task("square", index * index, index)
        assert reader.catch_up() == []
        history.run_task("square", 1, 1)
        assert results_of(reader.catch_up()) == [{"square": [0, 1, 4]}]

    def test_one_instance_is_a_list_too(self) -> None:
        history, reader = self.mapped(1)
        history.run_task("square", 7, 0)
        assert results_of(reader.catch_up()) == [{"square": [7]}]

    def test_an_instance_that_returns_none_is_null_in_the_list(self) -> None:
        history, reader = self.mapped(2)
        history.run_task("square", 7, 0)
        history.succeed_directly("square", 1)
        assert results_of(reader.catch_up()) == [{"square": [7, None]}]

    def test_late_expansion_is_waited_for(self) -> None:
        history = History(graph({"list": ["square"], "square": []}, {}))
        reader = SimulatedReader(history)
        history.run_task("list", [1, 2])
        assert reader.catch_up() == []
        history.expand("square", 2)
        assert reader.catch_up() == []
        history.run_task("square", 1, 0)
        assert reader.catch_up() == []
        history.run_task("square", 4, 1)
        assert results_of(reader.catch_up()) == [{"square": [1, 4]}]

    def test_indexes_beyond_a_shrunk_mapping_are_not_missing(self) -> None:
        history, reader = self.mapped(3)
        history.set_task("square", "removed", 2)
        history.run_task("square", 0, 0)
        history.run_task("square", 1, 1)
        assert results_of(reader.catch_up()) == [{"square": [0, 1]}]

    def test_all_instances_removed_is_a_failure(self) -> None:
        history, reader = self.mapped(2)
        history.set_task("square", "removed", 0)
        history.set_task("square", "removed", 1)
        assert failure_of(reader.catch_up()).reason == "task_removed"

    def test_an_empty_mapping_returns_an_empty_list(self) -> None:
        history = History(MAPPED)
        reader = SimulatedReader(history)
        history.run_task("list", [])
        assert results_of(reader.catch_up()) == []
        history.expand_to_nothing("square")
        frames = reader.catch_up()
        assert results_of(frames) == [{"square": []}]
        assert isinstance(frames[0], Result)
        assert frames[0].seq == history.journal[-1].seq

    def test_mapping_over_an_empty_literal_returns_an_empty_list(self) -> None:
        history = History(dag({"square": Node(mapped_over=[])}))
        reader = SimulatedReader(history)
        assert reader.catch_up() == []
        history.expand_to_nothing("square")
        assert results_of(reader.catch_up()) == [{"square": []}]

    @pytest.mark.parametrize("written", [False, True])
    def test_mapping_that_upstream_skips_is_a_failure(self, *, written: bool) -> None:
        history = History(MAPPED)
        reader = SimulatedReader(history)
        history.set_task("list", "skipped")
        if written:
            history.set_task("square", "skipped")
        failure = failure_of(reader.catch_up())
        assert (failure.reason, failure.task_id) == ("task_skipped", "list")

    def test_empty_list_is_retracted_when_the_task_is_cleared(self) -> None:
        history = History(MAPPED)
        reader = SimulatedReader(history, until="run")
        history.run_task("list", [])
        history.expand_to_nothing("square")
        reader.catch_up()
        history.set_task("square", None)
        assert types(reader.catch_up()) == ["reset", "snapshot"]

    def test_one_failed_instance_is_a_failure_that_names_it(self) -> None:
        history, reader = self.mapped(3)
        history.run_task("square", 0, 0)
        history.start("square", 1)
        history.set_task("square", "failed", 1)
        failure = failure_of(reader.catch_up())
        assert (failure.task_id, failure.map_index, failure.try_number) == ("square", 1, 1)

    def test_a_large_list_is_one_reference_to_all_entries(self) -> None:
        history, _ = self.mapped(2)
        for index in range(2):
            history.run_task("square", index, index)
        values = {("square", 0): ReturnValue(10, None), ("square", 1): ReturnValue(20, None)}
        (result, _) = OutcomeTracker(WatchOptions()).add_values(history.state(), {"square"}, values)
        assert isinstance(result, Result)
        assert result.references["square"].bytes == 30
        assert result.references["square"].href.endswith("/taskInstances/square/xcomEntries")

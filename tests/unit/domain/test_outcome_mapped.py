"""Outcomes of mapped tasks: a list by `map_index`, however late, long or short it becomes."""

from __future__ import annotations

import pytest

from stream_server.domain.outcome import ReturnValue, WatchOptions
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.protocol.frames import AnyFrame, End, Failure, Result
from support.builders import History, SimulatedReader, graph, results_of, types
from support.serialized_dags import Node, dag, mapped_group, plain_group

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
    def test_mapping_that_upstream_skips_has_no_outcome(self, *, written: bool) -> None:
        history = History(MAPPED)
        reader = SimulatedReader(history)
        history.set_task("list", "skipped")
        if written:
            history.skip_from_outside("square")
        assert reader.catch_up() == []
        if not written:
            history.skip_from_outside("square")
        history.set_run("success")
        (end,) = reader.catch_up()
        assert isinstance(end, End)
        assert (end.outcome, end.reason, end.task_id) == ("none", "task_skipped", "square")

    def test_mapping_that_another_upstream_skips_has_no_outcome(self) -> None:
        history = History(dag({"list": Node("square"), "gate": Node("square"), "square": Node(mapped_over="list")}))
        reader = SimulatedReader(history)
        history.run_task("list", [1, 2])
        history.set_task("gate", "skipped")
        history.skip_from_outside("square")
        assert reader.catch_up() == []
        history.set_run("success")
        (end,) = reader.catch_up()
        assert isinstance(end, End)
        assert (end.outcome, end.reason, end.task_id) == ("none", "task_skipped", "square")

    def test_skipped_instances_are_left_out_and_the_frame_names_the_others(self) -> None:
        history, reader = self.mapped(3)
        history.start("square", 1)
        history.set_task("square", "skipped", 1)
        history.run_task("square", 1, 0)
        assert reader.catch_up() == []
        history.start("square", 2)
        history.push("square", 9, 2)
        frames = reader.catch_up()
        assert results_of(frames) == [{"square": [1, 9]}]
        assert isinstance(frames[0], Result)
        assert frames[0].map_indexes == {"square": [0, 2]}
        assert results_of(SimulatedReader(history).receive()) == [{"square": [1, 9]}]

    def test_the_last_skip_completes_the_result(self) -> None:
        history, reader = self.mapped(2)
        history.run_task("square", 1, 0)
        history.start("square", 1)
        assert reader.catch_up() == []
        history.set_task("square", "skipped", 1)
        (result, _) = reader.catch_up()
        assert isinstance(result, Result)
        assert result.seq == history.journal[-1].seq

    def test_null_and_a_skip_are_different(self) -> None:
        history, reader = self.mapped(3)
        for index, state in enumerate(("success", "skipped", "success")):
            history.start("square", index)
            history.set_task("square", state, index)
        frames = reader.catch_up()
        assert results_of(frames) == [{"square": [None, None]}]
        assert isinstance(frames[0], Result)
        assert frames[0].map_indexes == {"square": [0, 2]}

    def test_the_frame_names_the_indexes_if_the_first_instance_was_deleted(self) -> None:
        history, _ = self.mapped(2)
        del history.rows["square", 0]
        history.run_task("square", 1, 1)
        reader = SimulatedReader(history)
        (result, _) = reader.receive()
        assert isinstance(result, Result)
        assert (results_of([result]), result.map_indexes) == ([{"square": [1]}], {"square": [1]})

    def test_lists_without_a_gap_have_no_map_indexes(self) -> None:
        history, reader = self.mapped(3)
        history.set_task("square", "removed", 2)
        for index in range(2):
            history.run_task("square", index, index)
        result = reader.catch_up()[0]
        assert isinstance(result, Result)
        assert result.map_indexes == {}

    def test_all_instances_skipped_has_no_outcome(self) -> None:
        history, reader = self.mapped(2)
        for index in range(2):
            history.start("square", index)
            history.set_task("square", "skipped", index)
        assert reader.catch_up() == []
        history.set_run("success")
        (end,) = reader.catch_up()
        assert isinstance(end, End)
        assert (end.outcome, end.reason, end.task_id) == ("none", "task_skipped", "square")

    def test_skipped_index_of_a_mapped_group_is_left_out_before_airflow_skips_it(self) -> None:
        grouped = dag({"g.a": Node("g.b"), "g.b": Node()}, plain_group(g=mapped_group("g.a", "g.b", over=[1, 2])))
        history = History(grouped)
        reader = SimulatedReader(history)
        for task_id in ("g.a", "g.b"):
            history.expand(task_id, 2)
        history.run_task("g.a", 1, 0)
        history.start("g.a", 1)
        history.set_task("g.a", "skipped", 1)
        history.run_task("g.b", 2, 0)
        frames = reader.catch_up()
        assert results_of(frames) == [{"g.b": [2]}]
        assert isinstance(frames[0], Result)
        assert frames[0].map_indexes == {"g.b": [0]}

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

"""Predictions in single cases; `tests/airflow/test_outcome_check.py` compares with Airflow's own scheduler."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from stream_server.domain.graph import Graph
from stream_server.domain.prediction import Prediction
from support.predictions import CHAIN, cannot_succeed, predict
from support.serialized_dags import Node, dag, mapped_group, plain_group, setup, teardown


def unsuccessful(graph: Graph, **states: str | Mapping[int, str | None] | None) -> set[str]:
    prediction = predict(graph, **states)
    return {task_id for task_id in graph.tasks if cannot_succeed(prediction, task_id)}


class TestSpreading:
    def test_failure_is_propagated_to_the_end_at_once(self) -> None:
        assert unsuccessful(CHAIN, a="success", b="failed") == {"b", "c", "d", "e", "f"}
        assert predict(CHAIN, a="success", b="failed").must_fail("f") == {-1}

    @pytest.mark.parametrize(
        "state", ["success", "running", "queued", "up_for_retry", "restarting", "deferred", "awaiting_input", "new"]
    )
    def test_all_can_succeed_while_nothing_has_failed(self, state: str) -> None:
        assert unsuccessful(CHAIN, a=state) == set()

    def test_task_that_waits_for_the_root_cause_skips_too_late(self) -> None:
        """A loop that runs `c` has failed `b`; so `d` fails (`all_success`), although `c` may skip itself."""
        graph = dag({"a": Node("b", "c"), "b": Node("d"), "c": Node("d", trigger_rule="none_skipped"), "d": Node()})
        assert predict(graph, a="failed").must_fail("d") == {-1}

    def test_task_that_waits_for_what_the_root_cause_fails_skips_too_late(self) -> None:
        nodes = {"a": Node("b", "x"), "b": Node("d"), "x": Node("c"), "c": Node("d", trigger_rule="all_done")}
        assert predict(dag({**nodes, "d": Node()}), a="failed").must_fail("d") == {-1}

    @pytest.mark.parametrize(
        ("nodes", "states"),
        [
            # If a loop that had not seen the failure scheduled it, it may skip itself before the next loop.
            ({"a": Node("b"), "b": Node("d"), "c": Node("d"), "d": Node()}, {"a": "failed"}),
            ({"a": Node("b"), "b": Node("d"), "x": Node("c"), "c": Node("d"), "d": Node()}, {"a": "failed"}),
            # So may a running task, or one that waits for the first of several.
            ({"a": Node("b", "c"), "b": Node("d"), "c": Node("d", trigger_rule="none_skipped"), "d": Node()},
             {"a": "failed", "c": "running"}),
            ({"a": Node("b", "c"), "x": Node("c"), "b": Node("d"), "c": Node("d", trigger_rule="one_done"),
              "d": Node()}, {"a": "failed"}),
            # If there are two causes, a loop may have seen the other one.
            ({"a": Node("b", "x"), "b": Node("d"), "y": Node("x"), "x": Node("c"),
              "c": Node("d", trigger_rule="all_done"), "d": Node()}, {"a": "failed", "y": "failed"}),
            # A failure that is two loops away may come after the skip.
            ({"a": Node("b", "c"), "b": Node("e"), "e": Node("d"), "c": Node("d", trigger_rule="none_skipped"),
              "d": Node()}, {"a": "failed"}),
        ],
    )  # fmt: skip
    def test_task_that_may_skip_itself_earlier_can_save_the_run(
        self, nodes: Mapping[str, Node], states: dict[str, str]
    ) -> None:
        prediction = predict(dag(nodes), **states)
        assert cannot_succeed(prediction, "d") == {-1}
        assert prediction.must_fail("d") == frozenset()

    def test_skips_propagate_without_failing_the_run(self) -> None:
        prediction = predict(CHAIN, a="skipped")
        assert cannot_succeed(prediction, "f") == {-1}
        assert prediction.must_fail("f") == frozenset()

    def test_running_task_has_met_its_rule(self) -> None:
        assert unsuccessful(CHAIN, a="failed", b="running") == {"a"}

    def test_removed_instance_counts_as_successful(self) -> None:
        assert unsuccessful(CHAIN, a="removed") == {"a"}

    def test_unknown_rule_can_succeed(self) -> None:
        graph = dag({"a": Node("b"), "b": Node(trigger_rule="all_new")})
        assert unsuccessful(graph, a="failed") == {"a"}

    def test_task_without_instances_can_succeed(self) -> None:
        prediction = Prediction(CHAIN, {"a": {"failed": {-1}}, "c": {None: {-1}}})
        assert cannot_succeed(prediction, "c") == frozenset()


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "left", "right", "is_unsuccessful"),
        [
            ("all_success", "failed", None, True),
            ("none_failed", "skipped", None, False),
            ("none_failed", "upstream_failed", None, True),
            ("none_failed_min_one_success", "skipped", None, False),
            ("none_failed_min_one_success", "skipped", "skipped", True),
            ("one_success", "failed", None, False),
            ("one_success", "failed", "skipped", True),
            ("all_done", "failed", "failed", False),
            ("always", "failed", "failed", False),
            ("one_failed", "success", None, False),
            ("one_failed", "success", "success", True),
            ("all_failed", "success", None, True),
            ("all_skipped", "failed", None, True),
            ("none_skipped", "failed", None, False),
            ("none_skipped", "skipped", None, True),
            ("one_done", "skipped", "upstream_failed", True),
            ("all_done_min_one_success", "failed", "failed", True),
            ("all_done_min_one_success", "failed", None, False),
        ],
    )
    def test_task_cannot_succeed_if_its_rule_cannot_be_met(
        self, rule: str, left: str, right: str | None, *, is_unsuccessful: bool
    ) -> None:
        graph = dag({"left": Node("join"), "right": Node("join"), "join": Node(trigger_rule=rule)})
        assert ("join" in unsuccessful(graph, left=left, right=right)) is is_unsuccessful

    def test_race_between_failing_and_skipping_is_undecided(self) -> None:
        """`end` depends on whether `middle` fails before `right` skips itself."""
        nodes = {"left": Node("near"), "near": Node("middle"), "right": Node("middle"), "middle": Node("end")}
        graph = dag({**nodes, "end": Node(trigger_rule="none_failed")})
        assert unsuccessful(graph, left="failed", right="running") == {"left", "near", "middle"}
        assert "end" in unsuccessful(graph, left="failed", right="success")


class TestSetupsAndTeardowns:
    GRAPH = dag({"s": setup("a", "t"), "a": Node("b"), "b": Node("t", trigger_rule="all_done"), "t": teardown()})

    def test_failed_setup_fails_indirect_downstream_whatever_its_rule(self) -> None:
        assert unsuccessful(self.GRAPH, s="failed") == {"s", "a", "b", "t"}

    def test_skipped_setup_precedes_a_direct_failure(self) -> None:
        """The task is skipped, and the run does not fail (`_evaluate_setup_constraint` is evaluated first)."""
        graph = dag({"s": setup("a"), "a": Node("b"), "b": Node("c"), "c": Node(), "x": Node("c")})
        prediction = predict(graph, s="skipped", a="running", x="failed")
        assert cannot_succeed(prediction, "c") == {-1}
        assert prediction.must_fail("c") == frozenset()
        assert predict(graph, s="success", a="running", x="failed").must_fail("c") == {-1}

    def test_a_teardown_runs_if_its_setup_has(self) -> None:
        assert unsuccessful(self.GRAPH, s="success", a="failed") == {"a"}

    def test_a_skipped_setup_skips_its_teardown(self) -> None:
        assert predict(self.GRAPH, s="skipped").must_fail("t") == frozenset()
        assert "t" in unsuccessful(self.GRAPH, s="skipped")


class TestMapped:
    def test_one_failed_instance_fails_a_rule_that_needs_all(self) -> None:
        graph = dag({"m": Node("sum", mapped_over=[1, 2]), "sum": Node()})
        assert unsuccessful(graph, m={0: "success", 1: "failed", 2: None}) == {"m", "sum"}

    def test_failed_instance_fails_the_list_while_others_run(self) -> None:
        graph = dag({"m": Node(mapped_over=[1, 2])})
        assert cannot_succeed(predict(graph, m={0: "running", 1: "failed"}), "m") == {1}

    def test_removed_instance_is_not_missing_unless_all_are(self) -> None:
        graph = dag({"m": Node(mapped_over=[1, 2])})
        assert cannot_succeed(predict(graph, m={0: "running", 1: "removed"}), "m") == frozenset()
        assert cannot_succeed(predict(graph, m={0: "removed", 1: "failed"}), "m") == {1}
        assert cannot_succeed(predict(graph, m={0: "removed", 1: "removed"}), "m") == {0, 1}

    def test_expansion_source_must_succeed_whatever_the_rule(self) -> None:
        graph = dag({"list": Node("m"), "m": Node(mapped_over="list", trigger_rule="all_done")})
        assert unsuccessful(graph, list="failed") == {"list", "m"}

    def test_rule_that_is_met_before_expansion_fails_the_task(self) -> None:
        """Airflow expands it to nothing then, and calls that `upstream_failed` (`TaskMap.expand_mapped_task`)."""
        nodes = {"ready": Node("m", "list"), "list": Node("m", trigger_rule="one_failed")}
        graph = dag({**nodes, "m": Node("end", mapped_over="list", trigger_rule="one_done"), "end": Node()})
        prediction = predict(graph, ready="success")
        assert cannot_succeed(prediction, "end") == {-1}
        assert prediction.must_fail("m") == frozenset()
        below = dag(
            {
                **nodes,
                "m": Node("end", mapped_over="list", trigger_rule="one_done"),
                "end": Node(trigger_rule="none_failed"),
            }
        )
        assert cannot_succeed(predict(below, ready="success"), "end") == frozenset()

    def test_skip_of_a_mapped_task_precedes_a_rule_that_waits_for_all(self) -> None:
        nodes = {"a": Node("m"), "b": Node("m"), "list": Node("m")}
        graph = dag({**nodes, "m": Node(mapped_over="list", trigger_rule="one_success")})
        assert predict(graph, a="upstream_failed", b="running", list="skipped").must_fail("m") == frozenset()

    def test_empty_literal_is_predicted_from_the_start(self) -> None:
        graph = dag({"m": Node("end", mapped_over=[]), "end": Node()})
        assert unsuccessful(graph) == {"m", "end"}
        assert predict(graph).must_fail("end") == frozenset()

    def test_a_task_that_waits_for_failures_of_a_mapping_over_nothing_is_skipped(self) -> None:
        graph = dag({"m": Node("mend", mapped_over=[]), "mend": Node(trigger_rule="one_failed")})
        assert unsuccessful(graph) == {"m", "mend"}

    def test_unexpanded_task_can_end_in_any_state(self) -> None:
        graph = dag({"list": Node("m"), "m": Node("end", mapped_over="list"), "end": Node(trigger_rule="none_failed")})
        assert unsuccessful(graph, list="success") == set()


class TestMappedGroup:
    GRAPH = dag(
        {"list": Node("g.a"), "g.a": Node("g.b"), "g.b": Node("end"), "end": Node()},
        plain_group("list", "end", g=mapped_group("g.a", "g.b", over="list")),
    )

    def test_only_the_same_index_counts_within_the_group(self) -> None:
        prediction = predict(self.GRAPH, list="success", g_a={0: "failed", 1: "success"}, g_b={0: None, 1: None})
        assert cannot_succeed(prediction, "g.b") == {0}
        assert cannot_succeed(prediction, "end") == {-1}

    def test_unexpanded_task_has_the_indexes_of_its_siblings(self) -> None:
        prediction = predict(self.GRAPH, list="success", g_a={0: "failed", 1: None})
        assert cannot_succeed(prediction, "g.b") == {0}
        assert cannot_succeed(prediction, "end") == {-1}

    def test_nested_task_fails_with_the_expansion_source_of_the_group(self) -> None:
        assert unsuccessful(self.GRAPH, list="failed") == {"list", "g.a", "g.b", "end"}

    def test_rules_in_which_versions_differ_are_predicted_where_all_agree(self) -> None:
        graph = dag(
            {"g.a": Node("g.b"), "g.b": Node(trigger_rule="one_success")},
            plain_group(g=mapped_group("g.a", "g.b", over=[1, 2])),
        )
        pending = {0: None, 1: None}
        assert cannot_succeed(predict(graph, g_a={0: "failed", 1: "running"}, g_b=pending), "g.b") == frozenset()
        assert cannot_succeed(predict(graph, g_a={0: "failed", 1: "failed"}, g_b=pending), "g.b") == {0, 1}

    def test_a_mapping_within_a_mapping_is_waited_for(self) -> None:
        outer = mapped_group("o.a", over=[1, 2])
        outer["children"]["o.i"] = ["taskgroup", mapped_group("o.i.b", over=[1, 2])]
        graph = dag({"o.a": Node("o.i.b"), "o.i.b": Node()}, plain_group(o=outer))
        assert unsuccessful(graph, o_a={0: "failed", 1: "failed"}, o_i_b=dict.fromkeys(range(4))) == {"o.a"}


class TestSkippedByOthers:
    def test_undecided_branch_may_skip(self) -> None:
        """`failed` does not overwrite, but `upstream_failed` is: what is below it may run after all."""
        nodes = {"branch": Node("a", _can_skip_downstream=True), "other": Node("a"), "a": Node("end")}
        graph = dag({**nodes, "end": Node(trigger_rule="none_failed")})
        assert "end" not in unsuccessful(graph, branch="running", other="failed", a="upstream_failed")
        assert "end" in unsuccessful(graph, branch="success", other="failed", a="upstream_failed")

    def test_tasks_of_a_failed_branch_cannot_succeed(self) -> None:
        nodes = {"branch": Node("a", "b", _can_skip_downstream=True), "a": Node("end"), "b": Node("end")}
        graph = dag({**nodes, "end": Node(trigger_rule="none_failed_min_one_success")})
        assert unsuccessful(graph, branch="failed") == {"branch", "a", "b", "end"}

    def test_fail_fast_skips_upstream_failed_tasks(self) -> None:
        graph = dag({"a": Node("b"), "b": Node(), "c": Node()}, fail_fast=True)
        prediction = predict(graph, a="failed", b="upstream_failed", c="running")
        assert cannot_succeed(prediction, "b") == {-1}
        assert prediction.must_fail("b") == frozenset()

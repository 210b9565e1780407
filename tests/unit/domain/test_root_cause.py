"""The root cause of instances that have failed, or are certain to."""

from __future__ import annotations

from stream_server.domain import root_cause
from stream_server.domain.prediction import Prediction
from support.builders import at
from support.predictions import CHAIN, predict
from support.serialized_dags import Node, dag, mapped_group, plain_group, setup, teardown

SETUP = dag({"s": setup("a", "t"), "a": Node("b"), "b": Node("t", trigger_rule="all_done"), "t": teardown()})
MAPPED_GROUP = dag(
    {"list": Node("g.a"), "g.a": Node("g.b"), "g.b": Node("end"), "end": Node()},
    plain_group("list", "end", g=mapped_group("g.a", "g.b", over="list")),
)


def find_root_cause(
    prediction: Prediction, task_id: str, map_index: int, ended: tuple[str, ...] = ()
) -> tuple[str, int] | None:
    """Return the root cause of one instance; the tasks ended in this order, or all at once."""
    return root_cause.find_root_cause(
        prediction, [(task_id, map_index)], lambda name, _: at(ended.index(name) if name in ended else len(ended))
    )


def test_root_cause_is_the_instance_that_failed_first() -> None:
    graph = dag({"a": Node("b"), "b": Node("c"), "c": Node(), "x": Node("b", "c")})
    assert find_root_cause(predict(graph, a="failed", x="success"), "c", -1) == ("a", -1)
    both = predict(graph, a="failed", x="failed")
    assert find_root_cause(both, "c", -1, ended=("a", "x")) == ("a", -1)
    assert find_root_cause(both, "c", -1, ended=("x", "a")) == ("x", -1)


def test_nothing_upstream_of_a_failed_instance_is_the_root_cause() -> None:
    graph = dag({"a": Node("b"), "b": Node("c", trigger_rule="all_done"), "c": Node()})
    assert find_root_cause(predict(graph, a="failed", b="failed"), "c", -1, ended=("a", "b")) == ("b", -1)


def test_first_of_several_by_name_and_index() -> None:
    graph = dag({"b": Node("c", mapped_over=[1, 2]), "a": Node("c"), "c": Node()})
    assert find_root_cause(predict(graph, a="success", b={0: "success", 2: "failed", 1: "failed"}), "c", -1) == (
        "b",
        1,
    )
    assert find_root_cause(predict(graph, a="failed", b={0: "failed"}), "c", -1) == ("a", -1)


def test_failed_task_is_its_own_root_cause() -> None:
    assert find_root_cause(predict(CHAIN, a="failed", b="failed"), "b", -1) == ("b", -1)


def test_root_cause_is_upstream_of_upstream_failed_instances() -> None:
    states = dict.fromkeys("bcdef", "upstream_failed")
    assert find_root_cause(predict(CHAIN, a="failed", **states), "f", -1) == ("a", -1)


def test_skips_are_no_root_cause() -> None:
    assert find_root_cause(predict(CHAIN, a="success", b="skipped", c="skipped"), "f", -1) is None


def test_root_cause_in_a_mapped_group_has_the_same_index() -> None:
    prediction = predict(
        MAPPED_GROUP, list="success", g_a={0: "failed", 1: "failed", 2: None}, g_b=dict.fromkeys(range(3))
    )
    assert find_root_cause(prediction, "g.b", 1) == ("g.a", 1)


def test_root_cause_can_be_a_setup_or_an_expansion_source() -> None:
    assert find_root_cause(predict(SETUP, s="failed", a="removed"), "b", -1) == ("s", -1)
    assert find_root_cause(predict(MAPPED_GROUP, list="failed"), "g.b", -1) == ("list", -1)


def test_task_that_could_not_be_expanded_is_its_own_root_cause() -> None:
    graph = dag({"list": Node("m"), "m": Node("end", mapped_over="list"), "end": Node()})
    assert find_root_cause(predict(graph, list="success", m="upstream_failed"), "end", -1) == ("m", -1)


def test_no_root_cause_if_all_succeeded() -> None:
    graph = dag({"a": Node("b"), "b": Node(trigger_rule="one_failed")})
    assert find_root_cause(predict(graph, a="success"), "b", -1) is None

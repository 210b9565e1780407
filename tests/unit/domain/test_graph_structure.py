"""The structure of a DAG for predictions: rules, setups, groups, mapping, and the author's marks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.domain.graph import Graph, Task
from support.serialized_dags import Node, dag, mapped_group, plain_group, setup, teardown

PARAM = {
    "__class": "airflow.sdk.definitions.param.Param",
    "default": True,
    "description": None,
    "schema": {"__var": {}, "__type": "dict"},
    "source": "task",
}


class TestTasks:
    def test_the_default_rule_is_all_success(self) -> None:
        assert dag({"a": Node()}).tasks["a"].trigger_rule == "all_success"

    def test_a_mapped_operator_keeps_its_rule_and_its_kind_apart(self) -> None:
        partial = {"trigger_rule": "all_done", "is_setup": True, "is_teardown": True, "on_failure_fail_dagrun": True}
        read = dag({"a": Node(mapped_over=[1], partial_kwargs=partial)}).tasks["a"]
        assert read == Task(
            "a",
            [],
            is_mapped=True,
            trigger_rule="all_done",
            is_setup=True,
            is_teardown=True,
            on_failure_fail_dagrun=True,
        )

    def test_branching_task_can_skip_downstream(self) -> None:
        assert dag({"a": Node(_can_skip_downstream=True)}).tasks["a"].can_skip_downstream

    def test_upstream_inverts_downstream(self) -> None:
        read = dag({"c": Node(), "b": Node("c"), "a": Node("b", "c", "c")})
        assert read.upstream == {"a": (), "b": ("a",), "c": ("a", "b")}
        assert read.topological_order == ("a", "b", "c")

    def test_missing_downstream_task_is_left_out(self) -> None:
        read = dag({"a": Node("gone", "b"), "b": Node()})
        assert read.upstream == {"a": (), "b": ("a",)}
        assert read.only_leaf == "b"

    def test_watchers_and_the_tasks_after_them_are_idle_when_all_others_succeed(self) -> None:
        read = dag(
            {
                "work": Node("alarm", "end"),
                "alarm": Node("page", "end", trigger_rule="one_failed"),
                "page": Node(),
                "end": Node(trigger_rule="all_done"),
                "first": Node(trigger_rule="one_failed"),
            }
        )
        assert read.idle_when_all_succeed == {"alarm", "page"}

    def test_cycle_is_left_out_of_the_order(self) -> None:
        assert dag({"a": Node("b"), "b": Node("a"), "c": Node()}).topological_order == ("c",)


class TestSetups:
    def test_setup_counts_for_tasks_before_its_teardown(self) -> None:
        read = dag({"s": setup("a", "t"), "a": Node("b"), "b": Node("t", "c"), "t": teardown(), "c": Node()})
        assert read.indirect_setups == {"b": ("s",)}

    def test_setup_without_teardown_counts_for_all_downstream(self) -> None:
        read = dag({"s": setup("a"), "a": Node("b"), "b": Node("c"), "c": Node()})
        assert read.indirect_setups == {"b": ("s",), "c": ("s",)}

    def test_several_setups_are_sorted(self) -> None:
        read = dag({"s2": setup("a"), "s1": setup("a"), "a": Node("b", "t"), "b": Node(), "t": teardown()})
        assert read.indirect_setups == {"b": ("s1", "s2")}


class TestGroups:
    def test_nested_tasks_of_a_mapped_group_may_expand(self) -> None:
        inner = plain_group("g.deep.b")
        group = plain_group("a", "c", g=mapped_group("g.a", over="a") | {})
        group["children"]["g"][1]["children"]["g.deep"] = ["taskgroup", inner]
        read = dag({name: Node() for name in ("a", "c", "g.a", "g.deep.b")}, group)
        assert {name: read.mapped_group_ids(name) for name in read.tasks} == {
            "a": (),
            "c": (),
            "g.a": ("g",),
            "g.deep.b": ("g",),
        }
        assert [name for name in read.tasks if read.may_expand(name)] == ["g.a", "g.deep.b"]
        assert read.expansion_sources("g.deep.b") == {"a"}

    def test_mapped_groups_are_listed_innermost_first(self) -> None:
        outer = mapped_group("o.a", over=[1, 2])
        outer["children"]["o.i"] = ["taskgroup", mapped_group("o.i.b", over=[1, 2, 3])]
        read = dag({"o.a": Node(), "o.i.b": Node()}, plain_group(o=outer))
        assert read.mapped_group_ids("o.i.b") == ("o.i", "o")

    @pytest.mark.parametrize(
        "reference",
        [
            {"task_id": "a", "key": "return_value"},
            {"type": "map", "arg": {"task_id": "a", "key": "return_value"}, "callables": ["lambda x: x"]},
            {"type": "zip", "args": [{"task_id": "a"}, {"type": "concat", "args": [{"task_id": "a"}]}]},
        ],
    )
    @pytest.mark.parametrize("attribute", ["expand_input", "op_kwargs_expand_input"])
    def test_finds_the_tasks_that_a_task_is_mapped_over(self, reference: dict[str, Any], attribute: str) -> None:
        value = {"__type": "xcomref", "__var": reference}
        written: dict[str, Any] = {attribute: {"type": "list-of-dicts", "value": value}}
        node = Node(_is_mapped=True, **written)
        assert dag({"a": Node("b"), "b": node}).expansion_sources("b") == {"a"}

    @pytest.mark.parametrize(
        ("values", "empty"),
        [
            ({"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"x": [1], "y": []}}}, True),
            ({"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"x": {"__var": {}}}}}, True),
            ({"type": "dict-of-lists", "value": {"__type": "dict", "__var": {"x": [1]}}}, False),
            ({"type": "list-of-dicts", "value": []}, True),
            ({"type": "list-of-dicts", "value": [{"x": 1}]}, False),
            ({"type": "list-of-dicts", "value": {"__type": "xcomref", "__var": {"task_id": "a"}}}, False),
        ],
    )
    def test_empty_literal_is_mapped_over_nothing(self, values: dict[str, Any], *, empty: bool) -> None:
        assert dag({"b": Node(_is_mapped=True, expand_input=values)}).is_mapped_over_nothing("b") is empty


class TestMarks:
    @pytest.mark.parametrize(
        "params",
        [
            [["stream_result", PARAM]],
            [["other", PARAM | {"default": False}], ["stream_result", PARAM]],
            {"stream_result": True},
            {"__type": "dict", "__var": {"stream_result": True}},
            {"stream_result": {"__var": PARAM, "__type": "param"}},
        ],
    )
    @pytest.mark.parametrize("partial", [False, True])
    def test_param_marks_a_result_task(self, params: object, *, partial: bool) -> None:
        fields: dict[str, Any] = {"partial_kwargs": {"params": params}} if partial else {"params": params}
        assert dag({"a": Node("b", **fields), "b": Node()}).marked_tasks == {"a"}

    @pytest.mark.parametrize(
        "params", [None, [], "stream_result", [["stream_result"]], [["stream_result", PARAM | {"default": "yes"}]], 7]
    )
    def test_other_params_do_not_mark_a_result_task(self, params: object) -> None:
        assert dag({"a": Node(params=params)}).marked_tasks == set()

    def test_tag_marks_an_existing_task(self) -> None:
        tags = ["ml", "stream-result:b", "stream-result:gone", 3]
        assert dag({"a": Node("b"), "b": Node()}, tags=tags).marked_tasks == {"b"}


json = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "taskgroup", "operator", "xcomref", "dict"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["__var", "__type", "children", "task_id", "is_mapped", "expand_input", "type", "value", "default"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
ODD = ("trigger_rule", "is_setup", "is_teardown", "_is_mapped", "_can_skip_downstream", "params", "partial_kwargs")


@given(st.dictionaries(st.sampled_from((*ODD, "expand_input")), json), json, json, json)
def test_unknown_shapes_are_ignored(fields: dict[str, Any], group: object, tags: object, fail_fast: object) -> None:
    read = dag({"a": Node("b", **fields), "b": Node()}, tags=tags, fail_fast=fail_fast, task_group=group)
    assert isinstance(read, Graph)
    assert read.topological_order == ("a", "b")
    for task_id in read.tasks:
        assert read.expansion_sources(task_id) <= read.tasks.keys()
        assert read.marked_tasks <= read.tasks.keys()
        assert isinstance(read.is_mapped_over_nothing(task_id), bool)
        assert read.mapped_group_ids(task_id) is not None


class TestOnlyLeaf:
    @pytest.mark.parametrize(
        "fields",
        [
            {"_is_empty": True},
            {"do_xcom_push": False},
            {"partial_kwargs": {"do_xcom_push": False}, "_is_mapped": True},
            {"trigger_rule": "one_failed"},
            {"trigger_rule": "all_failed"},
        ],
    )
    def test_leaf_that_cannot_answer_is_set_aside_repeatedly(self, fields: dict[str, Any]) -> None:
        read = dag({"work": Node("last"), "last": Node("end", **fields), "end": Node(**fields)})
        assert read.only_leaf == "work"

    def test_leaf_that_runs_after_a_failure_too_answers(self) -> None:
        assert dag({"work": Node("notify"), "notify": Node(trigger_rule="all_done")}).only_leaf == "notify"

    def test_setting_leaves_aside_can_leave_several(self) -> None:
        read = dag({"left": Node("end"), "right": Node("end"), "end": Node(_is_empty=True)})
        assert read.only_leaf is None

    def test_no_task_answers_if_none_returns_a_value(self) -> None:
        assert dag({"start": Node("end", _is_empty=True), "end": Node(_is_empty=True)}).only_leaf is None

    def test_task_above_a_teardown_stays_a_leaf_whatever_follows_the_teardown(self) -> None:
        read = dag({"work": Node("down"), "down": teardown("mail"), "mail": Node()})
        assert read.only_leaf is None

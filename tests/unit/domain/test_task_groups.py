"""Task groups, as Airflow serialises them."""

from __future__ import annotations

import pytest

from stream_server.domain.task_groups import NO_GROUPS, TaskGroup, parse_task_groups

NESTED = {
    "_group_id": None,
    "children": {
        "ask": ["operator", "ask"],
        "search": [
            "taskgroup",
            {
                "_group_id": "search",
                "children": {
                    "search.plan": ["operator", "search.plan"],
                    "search.pages": [
                        "taskgroup",
                        {"is_mapped": True, "children": {"search.pages.read": ["operator", "search.pages.read"]}},
                    ],
                },
            },
        ],
    },
}


def test_groups_come_before_those_within_them() -> None:
    tree = parse_task_groups(NESTED)
    assert tree.groups == (
        TaskGroup("search", None, is_mapped=False),
        TaskGroup("search.pages", "search", is_mapped=True),
    )
    assert tree.group_of_task == {"search.plan": "search", "search.pages.read": "search.pages"}


@pytest.mark.parametrize("shape", [None, {}, [], {"children": None}, {"children": {"a": "operator"}}, {"children": []}])
def test_unknown_shape_has_no_groups(shape: object) -> None:
    assert parse_task_groups(shape) == NO_GROUPS

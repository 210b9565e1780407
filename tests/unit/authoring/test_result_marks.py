from __future__ import annotations

import pytest

from stream_server.authoring import result_marks as marks
from stream_server.domain import graph


def test_the_server_looks_for_the_marks_that_are_made() -> None:
    assert (marks.RESULT_PARAM, marks.TAG_PREFIX) == (graph.RESULT_PARAM, graph.RESULT_TAG)


def test_a_tag_is_no_longer_than_airflow_allows() -> None:
    longest = "x" * (marks.MAX_TAG_LENGTH - len(marks.TAG_PREFIX))
    assert marks.result_tag(longest) == f"stream-result:{longest}"
    assert marks.result_tag(f"{longest}x") is None


def test_tags_of_others_are_none_of_ours() -> None:
    assert marks.tagged_task_ids({"stream-result:b", "example", "stream-result:a.b", "my-stream-result:c"}) == [
        "a.b",
        "b",
    ]


@pytest.mark.parametrize(
    ("task_id", "known", "expected"),
    [
        ("fetch_anser", ["fetch_answer", "log"], "Did you mean 'fetch_answer'?"),
        ("answer", ["ask.answer", "check.answer", "answers"], "Did you mean 'ask.answer' or 'check.answer'?"),
        ("ask.answer", ["answer"], "Did you mean 'answer'?"),
        ("nothing", ["fetch", "log"], "Name one of its tasks: 'fetch', 'log'."),
        ("answer", [], "It has no tasks yet: name it behind its task."),
    ],
)
def test_somebody_who_names_an_unknown_task_is_helped(task_id: str, known: list[str], expected: str) -> None:
    assert marks.suggest_task(task_id, known) == expected


def test_no_more_tasks_are_listed_than_anybody_would_read() -> None:
    names = [f"t{number}" for number in range(marks.MAX_LISTED_TASKS + 1)]
    assert marks.format_task_ids(names[:-1]).endswith("'t19'")
    assert marks.format_task_ids(names).endswith("'t19', …")

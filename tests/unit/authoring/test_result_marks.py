from __future__ import annotations

import pytest

from stream_server.authoring import result_marks
from stream_server.domain import graph


def test_server_reads_the_same_marks() -> None:
    assert (result_marks.RESULT_PARAM, result_marks.TAG_PREFIX) == (graph.RESULT_PARAM, graph.RESULT_TAG)


def test_tag_length_is_limited() -> None:
    longest = "x" * (result_marks.MAX_TAG_LENGTH - len(result_marks.TAG_PREFIX))
    assert result_marks.result_tag(longest) == f"stream-result:{longest}"
    assert result_marks.result_tag(f"{longest}x") is None


def test_other_tags_are_ignored() -> None:
    assert result_marks.tagged_task_ids({"stream-result:b", "example", "stream-result:a.b", "my-stream-result:c"}) == [
        "a.b",
        "b",
    ]


@pytest.mark.parametrize(
    ("task_id", "known", "expected"),
    [
        ("fetch_anser", ["fetch_answer", "log"], "Did you mean 'fetch_answer'?"),
        ("answer", ["ask.answer", "check.answer", "answers"], "Did you mean 'ask.answer' or 'check.answer'?"),
        ("ask.answer", ["answer"], "Did you mean 'answer'?"),
        ("nothing", ["fetch", "log"], "Name one of the DAG's tasks: 'fetch', 'log'."),
        ("answer", [], "The DAG has no tasks yet: create the task first."),
    ],
)
def test_unknown_task_gets_a_suggestion(task_id: str, known: list[str], expected: str) -> None:
    assert result_marks.suggest_task(task_id, known) == expected


def test_long_task_lists_are_shortened() -> None:
    names = [f"t{number}" for number in range(result_marks.MAX_LISTED_TASKS + 1)]
    assert result_marks.format_task_ids(names[:-1]).endswith("'t19'")
    assert result_marks.format_task_ids(names).endswith("'t19', …")

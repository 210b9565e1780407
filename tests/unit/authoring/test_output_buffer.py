"""Numbering, batching and bounds of what a task says; what Airflow does with it is for tests/airflow."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from stream_server.authoring import output
from stream_server.authoring import output_buffer as speaker
from stream_server.authoring.output_buffer import MAX_BATCH_BYTES, MAX_FAILURES, MAX_ITEM_BYTES, OutputBuffer
from stream_server.authoring.stream import _emit_yielded
from stream_server.domain.transition import OUTPUT_KEY
from stream_server.journal.queries import MAX_STORED_OUTPUT_BYTES

Batch = dict[str, Any]


class Airflow:
    """Takes what is pushed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.broken = 0
        self.asked = 0
        self.came = threading.Event()

    def push(self, batch: Batch) -> None:
        self.asked += 1
        if self.broken:
            self.broken -= 1
            raise RuntimeError("no answer")
        self.batches.append(batch)
        self.came.set()

    @property
    def heard(self) -> list[Any]:
        assert [one["index"] for one in self.batches] == [
            sum(len(earlier["items"]) for earlier in self.batches[:place]) for place in range(len(self.batches))
        ]
        return [item["chunk"] for one in self.batches for item in one["items"]]


def speaking(airflow: Airflow, *values: object, threaded: bool = False) -> OutputBuffer:
    made = OutputBuffer(2, airflow.push, threaded=threaded)
    for value in values:
        made.add({"chunk": value})
    return made


@pytest.mark.parametrize("threaded", [False, True])
def test_all_that_is_said_is_pushed_in_order_by_the_end(threaded: bool) -> None:  # a value, not a switch
    airflow = Airflow()
    speaking(airflow, *range(1000), threaded=threaded).close()
    assert airflow.heard == list(range(1000))
    assert len(airflow.batches) < 100, "many go along with one push"
    assert {one["try_number"] for one in airflow.batches} == {2}


def test_the_first_is_pushed_at_once_and_the_next_go_along_with_what_comes_later() -> None:
    airflow = Airflow()
    made = speaking(airflow, "a", "b", "c")
    assert airflow.heard == ["a"]
    made.close()
    assert airflow.batches[1:] == [{"try_number": 2, "index": 1, "items": [{"chunk": "b"}, {"chunk": "c"}]}]


def test_a_thread_pushes_what_nothing_follows() -> None:
    airflow = Airflow()
    made = speaking(airflow, "a", threaded=True)
    assert airflow.came.wait(10)
    airflow.came.clear()
    made.add({"chunk": "b"})
    assert airflow.came.wait(10)
    assert airflow.heard == ["a", "b"]
    made.close()


def test_pushes_are_no_larger_than_the_server_keeps() -> None:
    airflow = Airflow()
    value = "x" * (MAX_ITEM_BYTES - 100)
    speaking(airflow, *[value] * 10).close()
    assert airflow.heard == [value] * 10
    assert (
        max(len(one["items"]) for one in airflow.batches) * MAX_ITEM_BYTES
        <= MAX_BATCH_BYTES
        <= MAX_STORED_OUTPUT_BYTES / 2
    )
    assert output.OUTPUT_KEY == OUTPUT_KEY


@pytest.mark.parametrize("threaded", [False, True])
def test_what_could_not_be_pushed_is_pushed_again_under_the_same_index(
    caplog: pytest.LogCaptureFixture, threaded: bool
) -> None:
    airflow = Airflow()
    airflow.broken = MAX_FAILURES - 1
    made = speaking(airflow, "a", threaded=threaded)
    if threaded:
        assert airflow.came.wait(10)
    else:
        made.flush()
        made.flush()
    made.close()
    assert airflow.heard == ["a"]
    (record,) = caplog.records
    assert "could not be pushed" in record.getMessage()
    assert record.levelno == logging.WARNING


def test_a_try_that_is_refused_again_and_again_falls_silent() -> None:
    airflow = Airflow()
    airflow.broken = 100
    made = speaking(airflow, "a")
    for _ in range(10):
        made.flush()
        made.add({"chunk": "b"})
    made.close()
    assert airflow.asked == MAX_FAILURES


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "Only JSON values"),
        (float("nan"), "Only JSON values"),
        ("x" * (MAX_ITEM_BYTES + 1), f"at most {MAX_ITEM_BYTES}"),
    ],
)
def test_what_cannot_be_streamed_is_logged_once_and_left_out(
    caplog: pytest.LogCaptureFixture, value: object, why: str
) -> None:
    airflow = Airflow()
    speaking(airflow, "a", value, value, "b").close()
    assert airflow.heard == ["a", "b"]
    (record,) = caplog.records
    assert why in record.getMessage()


def test_a_try_says_no_more_than_its_bound(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(speaker.TRY_BYTES_VARIABLE, "100")
    airflow = Airflow()
    speaking(airflow, *["x" * 30] * 5).close()
    assert len(airflow.heard) == 2
    assert speaker.TRY_BYTES_VARIABLE in caplog.text


def test_characters_that_postgresql_refuses_are_replaced() -> None:
    airflow = Airflow()
    speaking(airflow, "a\0b", {"k\0": ["\ud800", ("t",)]}, "\\u0000 😀").close()
    assert airflow.heard == ["a\ufffdb", {"k\ufffd": ["?", ["t"]]}, "\\u0000 😀"]


def test_outside_of_a_running_task_nothing_happens() -> None:
    output.emit("word")
    output.progress(0.5, "half")
    output.finish()


def test_what_yields_nothing_is_refused_with_a_remedy() -> None:
    with pytest.raises(TypeError, match="must yield, or return an iterator"):
        _emit_yielded(lambda: "text")()


async def some() -> Any:
    yield "a"
    yield "b"


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda: iter(["a", "b"]), "ab"),
        (lambda: iter(["a", 1]), None),
        (lambda: iter([]), None),
        (some, "ab"),
    ],
)
def test_text_is_returned_as_a_whole(function: Any, returned: object) -> None:
    assert _emit_yielded(function)() == returned

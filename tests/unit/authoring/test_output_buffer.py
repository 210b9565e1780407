"""Numbering, batches and limits of a task's output. `tests/airflow` tests the path through Airflow."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stream_server.authoring import output
from stream_server.authoring.output_buffer import (
    INTERVAL_VARIABLE,
    MAX_BATCH_BYTES,
    MAX_FAILURES,
    MAX_ITEM_BYTES,
    TRY_BYTES_VARIABLE,
    OutputBuffer,
    _read_push_interval,
)
from stream_server.authoring.stream import _emit_yielded
from stream_server.domain.transition import OUTPUT_KEY
from stream_server.journal.queries import MAX_STORED_OUTPUT_BYTES
from support.waiting import eventually_async

Batch = dict[str, Any]


class Airflow:
    """Records the pushed batches."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.failures = 0
        self.calls = 0
        self.pushed = threading.Event()
        self.push_times: list[float] = []

    def push(self, batch: Batch) -> None:
        self.calls += 1
        self.push_times.append(time.monotonic())
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no answer")
        self.batches.append(batch)
        self.pushed.set()

    @property
    def values(self) -> list[Any]:
        assert [batch["index"] for batch in self.batches] == [
            sum(len(earlier["items"]) for earlier in self.batches[:position]) for position in range(len(self.batches))
        ]
        return [item["chunk"] for batch in self.batches for item in batch["items"]]


def buffer_with(airflow: Airflow, *values: object, threaded: bool = False) -> OutputBuffer:
    buffer = OutputBuffer(2, airflow.push, threaded=threaded)
    for value in values:
        buffer.add({"chunk": value})
    return buffer


@pytest.mark.parametrize("threaded", [False, True])
def test_close_pushes_all_items_in_order(threaded: bool) -> None:  # a value, not a switch
    airflow = Airflow()
    buffer_with(airflow, *range(1000), threaded=threaded).close()
    assert airflow.values == list(range(1000))
    assert len(airflow.batches) < 100, "items are pushed in batches"
    assert {batch["try_number"] for batch in airflow.batches} == {2}


def test_first_item_is_pushed_at_once_and_later_ones_together() -> None:
    airflow = Airflow()
    buffer = buffer_with(airflow, "a", "b", "c")
    assert airflow.values == ["a"]
    buffer.close()
    assert airflow.batches[1:] == [{"try_number": 2, "index": 1, "items": [{"chunk": "b"}, {"chunk": "c"}]}]


def test_thread_pushes_without_a_further_item() -> None:
    airflow = Airflow()
    buffer = buffer_with(airflow, "a", threaded=True)
    assert airflow.pushed.wait(10)
    airflow.pushed.clear()
    buffer.add({"chunk": "b"})
    assert airflow.pushed.wait(10)
    assert airflow.values == ["a", "b"]
    buffer.close()


def test_batches_stay_below_the_stored_size() -> None:
    airflow = Airflow()
    value = "x" * (MAX_ITEM_BYTES - 100)
    buffer_with(airflow, *[value] * 10).close()
    assert airflow.values == [value] * 10
    assert (
        max(len(batch["items"]) for batch in airflow.batches) * MAX_ITEM_BYTES
        <= MAX_BATCH_BYTES
        <= MAX_STORED_OUTPUT_BYTES / 2
    )
    assert output.OUTPUT_KEY == OUTPUT_KEY


@pytest.mark.parametrize("threaded", [False, True])
def test_failed_push_is_retried_with_the_same_index(caplog: pytest.LogCaptureFixture, threaded: bool) -> None:
    airflow = Airflow()
    airflow.failures = MAX_FAILURES - 1
    buffer = buffer_with(airflow, "a", threaded=threaded)
    if threaded:
        assert airflow.pushed.wait(10)
    else:
        buffer.flush()
        buffer.flush()
    buffer.close()
    assert airflow.values == ["a"]
    (record,) = caplog.records
    assert "A push of output failed" in record.getMessage()
    assert record.levelno == logging.WARNING


@pytest.mark.parametrize("threaded", [False, True])
def test_failed_push_is_retried_after_close(monkeypatch: pytest.MonkeyPatch, threaded: bool) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "60000")
    airflow = Airflow()
    buffer = buffer_with(airflow, "a", threaded=threaded)
    assert airflow.pushed.wait(10)
    airflow.failures = MAX_FAILURES - 1
    buffer.add({"chunk": "b"})
    buffer.close()
    assert airflow.values == ["a", "b"]


@pytest.mark.parametrize("threaded", [False, True])
def test_close_gives_up_after_repeated_failures(monkeypatch: pytest.MonkeyPatch, threaded: bool) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "60000")
    airflow = Airflow()
    buffer = buffer_with(airflow, "a", threaded=threaded)
    assert airflow.pushed.wait(10)
    airflow.failures = 100
    buffer.add({"chunk": "b"})
    buffer.close()
    assert (airflow.values, airflow.calls) == (["a"], 1 + MAX_FAILURES)


class DeadlockImminentError(RuntimeError):
    """As Airflow 3.3 raises it."""


def test_a_push_beside_another_request_of_the_event_loop_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    airflow = Airflow()
    busy = [True]

    def push(batch: Batch) -> None:
        if busy[0]:
            raise DeadlockImminentError
        airflow.push(batch)

    buffer = OutputBuffer(2, push, threaded=False)
    for value in range(10 * MAX_FAILURES):
        buffer.add({"chunk": value})
        buffer.flush()
    busy[0] = False
    buffer.close()
    assert airflow.values == [*range(10 * MAX_FAILURES)]
    assert not caplog.records


def test_a_connection_that_stays_busy_is_given_up() -> None:
    def push(_batch: Batch) -> None:
        raise DeadlockImminentError

    buffer = OutputBuffer(2, push, threaded=False)
    buffer.add({"chunk": "a"})
    buffer.close()
    assert not buffer._has_items


def test_repeated_failures_stop_the_output() -> None:
    airflow = Airflow()
    airflow.failures = 100
    buffer = buffer_with(airflow, "a")
    for _ in range(10):
        buffer.flush()
        buffer.add({"chunk": "b"})
    buffer.close()
    assert airflow.calls == MAX_FAILURES


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "not a JSON value"),
        (float("nan"), "not a JSON value"),
        ("x" * (MAX_ITEM_BYTES + 1), f"the limit is {MAX_ITEM_BYTES}"),
    ],
)
def test_invalid_value_is_skipped_and_logged_once(caplog: pytest.LogCaptureFixture, value: object, why: str) -> None:
    airflow = Airflow()
    buffer_with(airflow, "a", value, value, "b").close()
    assert airflow.values == ["a", "b"]
    (record,) = caplog.records
    assert why in record.getMessage()


def test_output_of_a_try_is_limited(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(TRY_BYTES_VARIABLE, "100")
    airflow = Airflow()
    buffer_with(airflow, *["x" * 30] * 5).close()
    assert len(airflow.values) == 2
    assert TRY_BYTES_VARIABLE in caplog.text


@pytest.mark.parametrize(("text", "batches"), [("0", 3), ("60000", 2), ("soon", 2)])
def test_the_interval_between_pushes_is_set_on_the_worker(
    monkeypatch: pytest.MonkeyPatch, text: str, batches: int
) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, text)
    airflow = Airflow()
    buffer_with(airflow, "a", "b", "c").close()
    assert (len(airflow.batches), airflow.values) == (batches, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("", 0.04), ("soon", 0.04), ("-1", 0.04), ("0", 0.0), ("25", 0.025), ("0" * 5000 + "25", 0.025)),
        *(("3600000", 3600.0), ("3600001", 3600.0), ("9" * 16, 3600.0), ("9" * 400, 3600.0), ("9" * 5000, 3600.0)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_interval_between_pushes_is_at_most_an_hour(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, text)
    assert _read_push_interval() == seconds
    airflow = Airflow()
    buffer_with(airflow, "a", "b", threaded=True).close()
    assert airflow.values == ["a", "b"]


@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_no_limit_of_a_try_is_too_large(monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    monkeypatch.setenv(TRY_BYTES_VARIABLE, "9" * digits)
    airflow = Airflow()
    buffer_with(airflow, "a", "b").close()
    assert airflow.values == ["a", "b"]


def test_characters_invalid_in_jsonb_are_replaced() -> None:
    airflow = Airflow()
    buffer_with(airflow, "a\0b", {"k\0": ["\ud800", ("t",)]}, "\\u0000 😀").close()
    assert airflow.values == ["a\ufffdb", {"k\ufffd": ["?", ["t"]]}, "\\u0000 😀"]


@pytest.fixture
def airflow_of_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    """What a running task with an event loop pushes to, at most each 50 ms."""
    airflow = Airflow()
    operator = SimpleNamespace(post_execute=None, on_failure_callback=None)
    task = SimpleNamespace(id="try", try_number=2, task=operator)
    monkeypatch.setenv(INTERVAL_VARIABLE, "50")
    monkeypatch.setattr(output, "_running_task", lambda: task)
    monkeypatch.setattr(output, "_push_xcom", lambda _task, batch: airflow.push(batch))
    yield airflow
    output.finish()


async def test_in_an_event_loop_pushes_keep_the_interval(airflow_of_task: Airflow) -> None:
    for number in range(30):
        output.emit(number)
        await asyncio.sleep(0.01)
    await eventually_async(lambda: airflow_of_task.values == [*range(30)])
    times = airflow_of_task.push_times
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.05 - 1e-6


async def test_in_an_event_loop_a_failed_push_is_retried(airflow_of_task: Airflow) -> None:
    airflow_of_task.failures = MAX_FAILURES - 1
    output.emit("a")
    await eventually_async(lambda: airflow_of_task.values == ["a"])


async def test_in_an_event_loop_repeated_failures_stop_the_output(airflow_of_task: Airflow) -> None:
    airflow_of_task.failures = 100
    output.emit("a")
    await eventually_async(lambda: airflow_of_task.calls == MAX_FAILURES)
    output.emit("b")
    output.finish()
    assert airflow_of_task.calls == MAX_FAILURES


def test_items_are_pushed_in_a_second_event_loop(airflow_of_task: Airflow) -> None:
    async def emit_and_end() -> None:
        output.emit("a")
        output.emit("b")

    async def emit_and_wait() -> None:
        output.emit("c")
        await eventually_async(lambda: airflow_of_task.values == ["a", "b", "c"])

    asyncio.run(emit_and_end())
    asyncio.run(emit_and_wait())


def test_emit_outside_of_a_task_does_nothing() -> None:
    output.emit("word")
    output.progress(0.5, "half")
    output.finish()


def test_function_that_does_not_yield_is_rejected() -> None:
    with pytest.raises(TypeError, match="must yield, or return an iterator"):
        _emit_yielded(lambda: "text")()


async def yield_text() -> Any:
    yield "a"
    yield "b"


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda: iter(["a", "b"]), "ab"),
        (lambda: iter(["a", 1]), None),
        (lambda: iter([]), None),
        (yield_text, "ab"),
    ],
)
def test_yielded_text_is_returned_concatenated(function: Any, returned: object) -> None:
    assert _emit_yielded(function)() == returned

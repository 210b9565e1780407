"""Expected output and results of each DAG in `airflow/dags/streaming_forms.py`."""

from __future__ import annotations

from typing import Any

from support.streams import Frame

EXPECTED_OUTPUT: dict[str, list[Any]] = {
    "stream_text": [{"fraction": 0.5, "text": "writing"}, "Be", "cause"],
    "stream_returns": [{"row": 1}, "text"],
    "stream_async": ["one ", "two ", "three"],
    "stream_plain": ["word", {"not": "text"}, {"fraction": None, "text": "nearly"}],
    "stream_operator": ["word"],
    "stream_iterator": ["one", "two"],
}
"""Output of the task of each DAG."""

EXPECTED_RESULTS: dict[str, Any] = {
    "stream_text": "Because",
    "stream_returns": {"rows": 1},
    "stream_async": "one two three",
    "stream_plain": "done",
    "stream_operator": "done",
    "stream_iterator": "onetwo",
}
"""Return value of the task of each DAG."""


def output_values(frames: list[Frame]) -> list[Frame]:
    """Return the frames with output of tasks."""
    return [frame for frame in frames if frame["type"] in {"chunk", "progress"}]

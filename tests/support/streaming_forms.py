"""What is to be heard of each DAG in `airflow/dags/streaming_forms.py`."""

from __future__ import annotations

from typing import Any

from support.streams import Frame

SAID: dict[str, list[Any]] = {
    "stream_text": [{"fraction": 0.5, "text": "writing"}, "Be", "cause"],
    "stream_returns": [{"row": 1}, "text"],
    "stream_async": ["one ", "two ", "three"],
    "stream_plain": ["word", {"not": "text"}, {"fraction": None, "text": "nearly"}],
    "stream_operator": ["word"],
    "stream_iterator": ["one", "two"],
}
"""What the task of each DAG says."""

RETURNED: dict[str, Any] = {
    "stream_text": "Because",
    "stream_returns": {"rows": 1},
    "stream_async": "one two three",
    "stream_plain": "done",
    "stream_operator": "done",
    "stream_iterator": "onetwo",
}
"""What it returns."""


def said(frames: list[Frame]) -> list[Frame]:
    """Return what tasks have said, of all that a stream has told."""
    return [frame for frame in frames if frame["type"] in {"chunk", "progress"}]

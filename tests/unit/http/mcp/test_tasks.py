"""Runs as tasks of the protocol."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from stream_server.http.mcp.tasks import RunCollector
from stream_server.protocol.frames import Reset
from stream_server.protocol.input_frames import Input


def test_a_reset_withdraws_questions_that_do_not_follow_again() -> None:
    collector = RunCollector()
    asked_at = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
    members: dict[str, Any] = {"dag_id": "d", "run_id": "r", "map_index": -1, "try_number": 1, "asked_at": asked_at}
    first, second = (Input(**members, task_id=name, subject="Go on?", options=["Yes"]) for name in ("a", "b"))
    for frame in (first, second, Reset(dag_id="d", run_id="r", reason="transitions_lost"), second):
        collector.apply(frame)
    assert collector.collected.requests == [second]
    collector.apply(Reset(dag_id="d", run_id="r", reason="transitions_lost"))
    assert collector.collected.requests == []

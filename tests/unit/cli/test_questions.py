"""Which questions of a run are open, and how `stream-server questions` shows them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
import typer

from stream_server.cli.exit import ExitCode
from stream_server.cli.questions import describe_question, find_open_questions, list_questions
from stream_server.client import ClientError, ConnectionLost, Message, Refused, StreamClosed, TokenExpired
from stream_server.domain.run_state import RunKey
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import AnyFrame, End, RunInfo, Snapshot, TaskInfo
from stream_server.protocol.input_frames import Input, InputAnswered, InputParam, InputUser

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def question(**members: Any) -> Input:
    given: dict[str, Any] = {
        "subject": "Go on?",
        "options": ["Approve", "Reject"],
        "map_index": -1,
        "asked_at": NOW,
        **members,
    }
    return Input(dag_id="d", run_id="r", task_id="ask", try_number=1, **given)


def answered(map_index: int = -1) -> InputAnswered:
    return InputAnswered(
        dag_id="d", run_id="r", task_id="ask", map_index=map_index, try_number=1, asked_at=NOW, answered_at=NOW
    )


def snapshot(state: str | None = "awaiting_input", try_number: int = 1) -> Snapshot:
    """Return a snapshot that lists the instances 0 and 1 of the task, and its instance -1."""
    tasks = [
        TaskInfo(task_id="ask", map_index=index, try_number=try_number, state=state, start_date=None, end_date=None)
        for index in (-1, 0, 1)
    ]
    run = RunInfo(state="running", queued_at=None, start_date=None, end_date=None, clear_number=0)
    return Snapshot(dag_id="d", run_id="r", run=run, tasks=tasks, result_tasks=[])


@pytest.mark.parametrize("state", ["running", "deferred", "awaiting_input"])
def test_a_request_of_a_task_that_waits_is_open(state: str) -> None:
    assert find_open_questions([snapshot(state), question()]) == [question()]


@pytest.mark.parametrize("state", [None, "success", "failed", "up_for_retry", "scheduled"])
def test_a_request_of_a_task_that_does_not_wait_is_not_open(state: str | None) -> None:
    assert find_open_questions([snapshot(state), question()]) == []


def test_a_request_of_an_earlier_try_is_not_open() -> None:
    assert find_open_questions([snapshot(try_number=2), question()]) == []


def test_each_instance_has_a_request_of_its_own() -> None:
    frames: list[AnyFrame] = [snapshot(), question(map_index=0), question(map_index=1), answered(0)]
    assert find_open_questions(frames) == [question(map_index=1)]


def test_the_oldest_question_comes_first() -> None:
    early, late = question(map_index=1), question(map_index=0, asked_at=NOW + timedelta(seconds=1))
    assert find_open_questions([snapshot(), late, early]) == [early, late]


def test_a_request_of_an_instance_that_the_snapshot_does_not_list_is_open() -> None:
    assert find_open_questions([snapshot("success"), question(map_index=5000)]) == [question(map_index=5000)]


def test_a_run_that_has_ended_asks_nothing() -> None:
    end = End(dag_id="d", run_id="r", state="failed", outcome="failure")
    assert find_open_questions([snapshot(), question(), end]) == []


def test_a_question_is_shown_with_all_that_an_answer_needs() -> None:
    param = InputParam(value=msgspec.Raw(b"null"), description="Why?", schema=msgspec.Raw(b'{"type":"string"}'))
    request = question(
        body="It is *late*.",
        params={"reason": param},
        assignees=[InputUser(id="1", name="Ada\x1b[31m")],
        expires_at=NOW,
        defaults=["Reject"],
    )
    assert describe_question(request).splitlines() == [
        "ask asks: Go on?",
        "It is *late*.",
        "  1 Approve",
        "  2 Reject",
        "  --param reason (Why?), by default null",
        "  only by Ada\ufffd[31m",
        "  until 2026-11-22T00:00:00+00:00",
        "  without an answer: Reject",
    ]


def test_content_that_is_left_out_is_explained() -> None:
    withheld = question(subject=None, options=[], withheld=True)
    assert describe_question(withheld) == "ask asks: (you may not read what it asks)"
    large = question(subject=None, options=[], reference=Reference(href="/api/v2/here", bytes=300_000))
    assert "/api/v2/here" in describe_question(large)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TokenExpired(4501, "expired"), ExitCode.CONNECTION_LOST),
        (StreamClosed(4503, "closed"), ExitCode.CONNECTION_LOST),
        (ConnectionLost("lost"), ExitCode.CONNECTION_LOST),
        (Refused(404, "no run"), ExitCode.USAGE),
    ],
)
def test_errors_of_the_stream_are_messages(
    error: ClientError, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> AsyncIterator[Message]:
        raise error

    monkeypatch.setattr("stream_server.cli.questions.follow", fail)
    with pytest.raises(typer.Exit) as left:
        list_questions("http://h", RunKey("d", "r"), token=None, patience=0.0, as_json=True)
    assert left.value.exit_code == code
    assert str(error) in capsys.readouterr().err

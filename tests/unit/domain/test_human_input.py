"""Requests for human input: decoded leniently, sent once, dropped with their try."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from stream_server.domain import human_input
from stream_server.domain.human_input import InputFrames, RunRequests, input_frames, parse_record
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.protocol.input_frames import Input, InputAnswered
from support.builders import KEY, at

ASKED_AT, ANSWERED_AT = at(1), at(9)


def request(*, try_number: int = 1, answered: bool = False, asked_at: Any = ASKED_AT, **members: Any) -> dict[str, Any]:
    content = {
        "subject": "Go on?",
        "options": ["Approve", "Reject"],
        "params": {},
        "params_input": {},
        "by": {"id": "ada", "name": "Ada"} if answered else None,
        "chosen_options": ["Approve"] if answered else None,
    }
    return {
        "dag_id": KEY.dag_id,
        "run_id": KEY.run_id,
        "task_id": "ask",
        "map_index": -1,
        "try_number": try_number,
        "asked_at": asked_at.isoformat(),
        "answered_at": ANSWERED_AT.isoformat() if answered else None,
        "bytes": 100,
        "content": content,
        **members,
    }


def row(state: str | None, body: dict[str, Any], seq: int = 5) -> Transition:
    return Transition(seq, 8, at(seq), TransitionKind.INPUT, *KEY, "ask", -1, 1, state, body=json.dumps(body))


def kinds(frames: InputFrames) -> list[str]:
    return [str(type(frame).__struct_config__.tag) for frame in frames]


OPEN_ROW, ANSWERED_ROW = row("open", request()), row("answered", request(answered=True), 6)


def test_a_question_and_its_answer_are_sent_once() -> None:
    requests = RunRequests()
    assert [kinds(requests.apply(one)) for one in (OPEN_ROW, OPEN_ROW)] == [["input"], []]
    assert kinds(requests.frames()) == ["input"]
    assert [kinds(requests.apply(one)) for one in (ANSWERED_ROW, ANSWERED_ROW, OPEN_ROW)] == [
        ["input_answered"],
        [],
        [],
    ]
    assert kinds(requests.frames()) == ["input", "input_answered"]


def test_the_row_of_the_question_may_be_read_after_the_answer() -> None:
    requests = RunRequests()
    late = row("open", request(answered=True))
    assert kinds(requests.apply(late)) == ["input"]
    assert kinds(requests.frames()) == ["input"]
    assert kinds(requests.apply(ANSWERED_ROW)) == ["input_answered"]


@pytest.mark.parametrize(
    ("sends_unknown", "state", "expected"),
    [
        (True, "answered", ["input", "input_answered"]),
        (False, "answered", ["input_answered"]),
        (False, None, ["input", "input_answered"]),
    ],
    ids=["live", "replay", "row of an earlier version"],
)
def test_an_answer_to_an_unknown_question(sends_unknown: bool, state: str | None, expected: list[str]) -> None:
    requests = RunRequests(sends_unknown=sends_unknown)
    assert kinds(requests.apply(row(state, request(answered=True)))) == expected


def test_a_deadline_that_becomes_known_is_sent() -> None:
    requests = RunRequests()
    requests.apply(OPEN_ROW)
    (frame,) = requests.apply(row("open", request(expires_at=at(50).isoformat())))
    assert isinstance(frame, Input)
    assert frame.expires_at == at(50)
    assert requests.apply(OPEN_ROW) == ()


def test_each_iteration_of_a_loop_has_a_request_of_its_own() -> None:
    requests = RunRequests()
    requests.apply(row("open", request(iteration=0, try_number=2)))
    (later,) = requests.apply(row("open", request(iteration=1, asked_at=at(3))))
    assert (later.iteration, later.try_number) == (1, 1)
    (answer,) = requests.apply(row("answered", request(iteration=0, try_number=2, answered=True)))
    assert (kinds([answer]), answer.iteration) == (["input_answered"], 0)
    requests.update_instance(("ask", -1, 1), "failed", 1, is_given_up=False)
    assert [(frame.iteration, kinds([frame])) for frame in requests.frames()] == [
        (0, ["input"]),
        (0, ["input_answered"]),
    ]


def test_an_older_question_changes_nothing() -> None:
    requests = RunRequests()
    requests.apply(row("open", request(asked_at=at(3))))
    assert requests.apply(OPEN_ROW) == ()
    assert requests.apply(ANSWERED_ROW) == ()
    assert kinds(requests.frames()) == ["input"], "the later one stays open"
    assert requests.apply(row("open", request(asked_at=at(3) + timedelta(microseconds=1)))) != ()


def test_of_two_tries_the_later_question_is_kept() -> None:
    requests = RunRequests()
    requests.apply(row("open", request(try_number=2)))
    (later,) = requests.apply(row("open", request(try_number=1, asked_at=at(3))))
    assert later.try_number == 1, "a task that was cleared may count its tries from 1 again"
    assert requests.apply(row("answered", request(try_number=2, answered=True))) == ()
    assert [frame.try_number for frame in requests.frames()] == [1]


@pytest.mark.parametrize(
    ("state", "try_number", "is_given_up", "left"),
    [
        ("running", 1, False, ["input"]),
        ("awaiting_input", 1, False, ["input"]),
        ("scheduled", 1, False, []),
        ("failed", 1, False, []),
        ("running", 2, False, []),
        ("restarting", 1, True, []),
    ],
)
def test_an_open_question_ends_with_its_try_or_its_wait(
    state: str, try_number: int, is_given_up: bool, left: list[str]
) -> None:
    requests = RunRequests()
    requests.apply(OPEN_ROW)
    requests.update_instance(("ask", -1, None), state, try_number, is_given_up=is_given_up)
    assert kinds(requests.frames()) == left


def test_an_answer_comes_after_the_task_was_resumed() -> None:
    requests = RunRequests()
    requests.apply(OPEN_ROW)
    requests.update_instance(("ask", -1, None), "scheduled", 1, is_given_up=False)
    assert kinds(requests.apply(ANSWERED_ROW)) == ["input_answered"]
    requests.update_instance(("ask", -1, None), "success", 1, is_given_up=False)
    assert kinds(requests.frames()) == ["input", "input_answered"]


def test_a_withdrawn_question_can_be_repeated() -> None:
    requests = RunRequests()
    requests.apply(OPEN_ROW)
    requests.update_instance(("ask", -1, None), "scheduled", 1, is_given_up=False)
    assert kinds(requests.apply(OPEN_ROW)) == ["input"]


def test_a_run_keeps_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(human_input, "MAX_REQUEST_BYTES_OF_RUN", 250)
    requests = RunRequests()
    for number in range(5):
        requests.apply(row("open", request(map_index=number)))
    shown = [frame.reference is None for frame in requests.frames()]
    assert shown == [True, True, False, False, False]
    requests.update_instance(("ask", 0, None), "restarting", 1, is_given_up=True)
    requests.apply(row("open", request(map_index=7)))
    assert [frame.reference is None for frame in requests.frames()] == [True, False, False, False, True]


@pytest.mark.parametrize(("state", "answered", "expected"), [
    ("open", False, ["input"]),
    ("open", True, ["input"]),
    ("answered", True, ["input_answered"]),
    ("answered", False, []),
    (None, False, ["input"]),
    (None, True, ["input_answered"]),
])  # fmt: skip
def test_a_stream_of_many_runs_has_one_frame_for_each_row(
    state: str | None, answered: bool, expected: list[str]
) -> None:
    assert kinds(input_frames(row(state, request(answered=answered)))) == expected


def test_the_members_of_a_question() -> None:
    content = {
        "subject": "S",
        "body": "B",
        "options": ["a", "b"],
        "defaults": ["b"],
        "multiple": True,
        "params": {
            "plain": {"deep": 1.50},
            "full": {"value": 1, "description": None, "schema": {"type": "integer"}, "extra": 0},
        },
        "assignees": [{"id": 7, "name": None}],
    }
    (frame,) = input_frames(row("open", request(content=content)))
    sent = json.loads(msgspec.json.encode(frame))
    assert sent["params"] == {
        "plain": {"value": {"deep": 1.5}, "description": None, "schema": {}},
        "full": {"value": 1, "description": None, "schema": {"type": "integer"}},
    }
    assert (sent["body"], sent["defaults"], sent["multiple"]) == ("B", ["b"], True)
    assert sent["assignees"] == [{"id": "7", "name": "7"}]


def test_defaults_that_were_chosen_after_the_deadline_have_no_user() -> None:
    body = request(answered=True)
    body["content"]["by"] = None
    (frame,) = input_frames(row("answered", body))
    assert isinstance(frame, InputAnswered)
    assert (frame.by, frame.expired, frame.chosen_options) == (None, True, ["Approve"])


def test_line_ends_of_the_database_stay_out_of_frames() -> None:
    body = json.dumps(request(content={**request()["content"], "params": {"a": [1, {"b": "x\ny"}]}}), indent=2)
    record = parse_record(body)
    assert record is not None
    (frame,) = input_frames(OPEN_ROW._replace(body=body))
    assert b"\n" not in msgspec.json.encode(frame)
    assert json.loads(msgspec.json.encode(frame))["params"]["a"]["value"] == [1, {"b": "x\ny"}]


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "null",
        json.dumps(request(content={"subject": None, "options": []})),
        json.dumps(request(content={"subject": "S", "options": {"a": 1}})),
        json.dumps(request(content={"subject": "S", "options": ["a"], "params": [1]})),
        json.dumps({**request(), "asked_at": None}),
        "[" * 100_000,
    ],
)
def test_a_row_of_another_shape_gives_no_frame(body: str) -> None:
    assert parse_record(body) is None
    assert input_frames(OPEN_ROW._replace(body=body)) == ()
    assert RunRequests().apply(OPEN_ROW._replace(body=body)) == ()

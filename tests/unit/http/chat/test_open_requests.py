"""Requests for human input that are open after some frames."""

from __future__ import annotations

from typing import Any

import pytest

from stream_server.http.chat.open_requests import drop_closed_requests
from stream_server.protocol.frames import AnyFrame, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered
from support.builders import KEY, at


def place(task_id: str) -> dict[str, Any]:
    return {**KEY._asdict(), "task_id": task_id, "map_index": -1, "try_number": 1}


def ask(task_id: str) -> Input:
    return Input(**place(task_id), asked_at=at(0))


def move(task_id: str, state: str) -> TaskTransition:
    return TaskTransition(**place(task_id), seq=1, at=at(0), state=state, previous_state=None)


ANSWERED = InputAnswered(**place("a"), asked_at=at(0), answered_at=at(1))
EXPIRED = InputAnswered(**place("a"), asked_at=at(0), answered_at=at(1), expired=True)


@pytest.mark.parametrize("closing", [ANSWERED, EXPIRED, move("a", "failed")])
def test_only_open_requests_stay(closing: AnyFrame) -> None:
    frames = [ask("a"), closing, ask("b"), move("b", "awaiting_input")]
    assert drop_closed_requests([*frames]) == frames[1:]


def test_a_task_that_asks_again_has_one_request() -> None:
    frames: list[AnyFrame] = [ask("a"), ANSWERED, ask("a")]
    assert drop_closed_requests([*frames]) == frames[1:]

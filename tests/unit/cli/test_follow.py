from __future__ import annotations

import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.cli import follow as module
from stream_server.cli.answer import Answer
from stream_server.cli.follow import Follower, encode_result_value, parse_conf
from stream_server.client import Message, RenewToken
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.frames import Result
from stream_server.protocol.input_frames import Input
from support.builders import KEY, at


def make_result(*, references: dict[str, Reference] | None = None, **values: str) -> Result:
    raws = {task_id: msgspec.Raw(value.encode()) for task_id, value in values.items()}
    return Result(**KEY._asdict(), results=raws, references=references or {})


async def test_answers_use_the_renewed_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[str | None] = []

    async def renew() -> str:
        return "new"

    async def follow(*_: object, renew_token: RenewToken, **__: object) -> AsyncIterator[Message]:
        assert await renew_token() == "new"
        messages: list[Message] = []
        for message in messages:
            yield message

    async def answer(*_: object, token: str | None, **__: object) -> None:
        tokens.append(token)

    monkeypatch.setattr(module, "follow", follow)
    monkeypatch.setattr(module, "answer_input", answer)
    follower = Follower("http://localhost", token="old", results=(), until="run", timeout=None, patience=1)
    request = Input(**KEY._asdict(), task_id="ask", map_index=-1, try_number=1, asked_at=at(0))
    await follower._send_answer(KEY, request, Answer(["Approve"], {}))
    monkeypatch.setattr(follower, "_renew_token", renew)
    await follower._follow_run(KEY, None, write_lines=True)
    await follower._send_answer(KEY, request, Answer(["Approve"], {}))
    assert tokens == ["old", "new"]


def test_result_of_one_task_is_its_value_unchanged() -> None:
    assert encode_result_value(make_result(answer='{"a": 1.10}')) == b'{"a": 1.10}'


def test_result_of_several_tasks_is_an_object() -> None:
    assert json.loads(encode_result_value(make_result(left="1", right="[2]"))) == {"left": 1, "right": [2]}


def test_result_may_be_a_reference() -> None:
    references = {"answer": Reference(href="/api/v2/x", bytes=9)}
    assert json.loads(encode_result_value(make_result(references=references))) == {"href": "/api/v2/x", "bytes": 9}


@given(st.dictionaries(st.text(), st.integers()))
def test_conf_is_a_json_object(conf: dict[str, int]) -> None:
    assert parse_conf(json.dumps(conf)) == conf


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '"text"'])
def test_other_conf_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON object|Expecting"):
        parse_conf(text)

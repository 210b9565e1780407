from __future__ import annotations

import json

import pytest

from stream_server.errors import BadRequest
from stream_server.http.openai.chunks import build_usage
from stream_server.http.openai.requests import build_question, decode_completion_request


def body(*messages: object, **members: object) -> bytes:
    return json.dumps({"model": "chat", "messages": messages, **members}).encode()


def test_the_last_message_is_the_question_and_those_before_it_the_history() -> None:
    request = decode_completion_request(
        body(
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            {"role": "assistant", "content": "Because."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "And"},
                    {"type": "image_url", "image_url": {"url": "data:,"}},
                    {"type": "text", "text": "now?"},
                ],
            },
            temperature=0.5,
            tools=[{"type": "function"}],
            max_tokens=None,
        )
    )
    assert build_question(request.messages).conf == {
        "message": "And\nnow?",
        "history": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ],
    }


@pytest.mark.parametrize(
    "messages",
    [[], [{"role": "assistant", "content": "Yes?"}], [{"role": "user", "content": [{"type": "image_url"}]}]],
)
def test_a_request_without_a_question_is_refused(messages: list[object]) -> None:
    with pytest.raises(BadRequest, match="messages"):
        build_question(decode_completion_request(body(*messages)).messages)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"\xff", b'{"model":5,"messages":[]}', b'{"model":"\xff","messages":[]}', b"[" * 100_000],
)
def test_a_body_of_another_shape_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest, match="chat completion"):
        decode_completion_request(text)


def test_more_than_one_choice_is_refused() -> None:
    with pytest.raises(BadRequest, match="`n` must be 1, got 2"):
        decode_completion_request(body({"role": "user", "content": "Why?"}, n=2))


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        (None, (0, 0, 0)),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4, 7)),
        ({"usage": {"prompt_tokens": 3, "completion_tokens": True, "total_tokens": "5"}}, (3, 0, 3)),
        ({"usage": 5}, (0, 0, 0)),
    ],
)
def test_a_result_can_report_usage(value: object, usage: tuple[int, int, int]) -> None:
    assert tuple(build_usage(value).values()) == usage

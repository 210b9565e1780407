"""Bodies of requests (`POST /v1/chat/completions` and `POST /v1/responses`). Pure.

Members that a DAG has no use for, such as `temperature`, are ignored: clients send them always.
"""

from __future__ import annotations

import msgspec

from stream_server.errors import BadRequest
from stream_server.http.chat.question import Question, Turn
from stream_server.protocol.schema import INVALID_JSON

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles in the history of a question by roles of messages. Messages of other roles are calls of tools."""


TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


class ContentPart(msgspec.Struct):
    """A part of a message. Only text is read."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    role: str = ""
    """Empty for items of `input` that are no messages."""

    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """The text of all parts."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join([part.text for part in self.content or () if part.type in TEXT_PARTS])


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class CompletionRequest(msgspec.Struct):
    model: str
    messages: list[Message]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


def decode_completion_request(body: bytes) -> CompletionRequest:
    """Return the request of a body.

    Raises:
        BadRequest: The body is not such a request.
    """
    try:
        request = msgspec.json.decode(body, type=CompletionRequest)
    except INVALID_JSON as error:
        raise BadRequest(f"The body must be a request for a chat completion: {error}") from None
    if request.n not in {None, 1}:
        raise BadRequest(f"`n` must be 1, got {request.n}: a DAG gives one answer")
    return request


def build_question(messages: list[Message]) -> Question:
    """Return the last message as question, and those before it as history.

    Raises:
        BadRequest: The last message is not a text of the user.
    """
    if not messages or messages[-1].role != "user":
        found = f"its role is {messages[-1].role[:40]!r}" if messages else "there is none"
        raise BadRequest(f"The last of `messages` must have the role `user`; {found}")
    question = messages[-1].text
    if not question:
        raise BadRequest("The last of `messages` has no text; images and files are not read")
    turns = [Turn(ROLES[message.role], message.text) for message in messages[:-1] if message.role in ROLES]
    return Question(question, [turn for turn in turns if turn.content])


class ResponseRequest(msgspec.Struct):
    model: str
    input: str | list[Message]
    instructions: str | None = None
    previous_response_id: str | None = None
    stream: bool | None = False
    background: bool | None = False
    metadata: dict[str, str] | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation, as that of a chat completion."""
        items = [Message("user", self.input)] if isinstance(self.input, str) else self.input
        return [*([Message("system", self.instructions)] if self.instructions else []), *items]


def decode_response_request(body: bytes) -> ResponseRequest:
    """Return the request of a body.

    Raises:
        BadRequest: The body is not such a request.
    """
    try:
        return msgspec.json.decode(body, type=ResponseRequest)
    except INVALID_JSON as error:
        raise BadRequest(f"The body must be a request for a response: {error}") from None

"""Bodies of requests, as `DefaultChatTransport` of the AI SDK sends them. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from stream_server.errors import BadRequest
from stream_server.http.chat.question import Question, Turn
from stream_server.protocol.schema import INVALID_JSON

MAX_CHAT_ID_LENGTH = 250
ROLES = frozenset({"system", "user", "assistant"})

ChatId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CHAT_ID_LENGTH)]


class Part(msgspec.Struct):
    """A part of a message. Only text is read."""

    type: str = ""
    text: Any = ""


class UiMessage(msgspec.Struct):
    role: str
    parts: list[Part] = []

    @property
    def text(self) -> str:
        """The text of all parts."""
        return "\n".join([part.text for part in self.parts if part.type == "text" and isinstance(part.text, str)])


class ChatRequest(msgspec.Struct):
    id: ChatId
    messages: list[UiMessage]


def decode_chat_request(body: bytes) -> ChatRequest:
    """Return the request of a body.

    Raises:
        BadRequest: The body is not such a request.
    """
    try:
        return msgspec.json.decode(body, type=ChatRequest)
    except INVALID_JSON as error:
        raise BadRequest(f"The body must be that of `DefaultChatTransport` of the AI SDK: {error}") from None


def build_question(messages: list[UiMessage]) -> Question:
    """Return the last message as question, and those before it as history.

    Raises:
        BadRequest: The last message is not a text of the user.
    """
    if not messages or messages[-1].role != "user" or not messages[-1].text:
        raise BadRequest("The last of `messages` must have the role `user`, and a part with text")
    turns = [Turn(message.role, message.text) for message in messages[:-1] if message.role in ROLES]
    return Question(messages[-1].text, [turn for turn in turns if turn.content])

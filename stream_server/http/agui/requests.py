"""Bodies of requests: `RunAgentInput` of AG-UI. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from stream_server.errors import BadRequest
from stream_server.http.chat.question import Question, Turn
from stream_server.protocol.schema import INVALID_JSON

MAX_ID_LENGTH = 250
DOT_SEGMENTS = frozenset({".", ".."})
"""Segments that are removed from paths (RFC 3986, section 5.2.4), also if they are percent-encoded."""

ROLES = frozenset({"system", "user", "assistant"})

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]


class Message(msgspec.Struct, rename="camel"):
    """A message, as far as it is read."""

    id: str = ""
    role: str = ""
    content: Any = None
    tool_calls: Any = None

    def is_of_run(self, run_id: str) -> bool:
        """Whether it is one of the messages that a DAG run has given to the client."""
        return self.id == run_id or self.id.startswith(f"{run_id}/")

    @property
    def arguments(self) -> dict[str, str]:
        """The arguments of its tool calls, by the id of the call. A lost connection may have cut them."""
        calls = [one for one in self.tool_calls if isinstance(one, dict)] if isinstance(self.tool_calls, list) else []
        functions = {str(one.get("id")): one.get("function") for one in calls}
        found = {call: function.get("arguments") for call, function in functions.items() if isinstance(function, dict)}
        return {call: arguments for call, arguments in found.items() if isinstance(arguments, str)}

    @property
    def text(self) -> str:
        """The text of all parts; empty for messages of other kinds, such as activities."""
        if isinstance(self.content, str):
            return self.content
        parts = [one for one in self.content if isinstance(one, dict)] if isinstance(self.content, list) else []
        texts = [one.get("text") for one in parts if one.get("type") == "text"]
        return "\n".join([text for text in texts if isinstance(text, str)])


class ResumeEntry(msgspec.Struct, rename="camel"):
    """The answer to an interrupt."""

    interrupt_id: str
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunInput(msgspec.Struct, rename="camel"):
    """What a client sends with each request."""

    thread_id: Id
    run_id: Id
    messages: list[msgspec.Raw]
    """The conversation. It is sent back as it came."""

    state: Any = None
    resume: list[ResumeEntry] | None = None

    @property
    def answers(self) -> dict[str, ResumeEntry]:
        """The entries of `resume` by interrupt."""
        return {entry.interrupt_id: entry for entry in self.resume or ()}

    def read_messages(self) -> list[Message]:
        """Return the messages.

        Raises:
            BadRequest: One is no message.
        """
        try:
            return [msgspec.json.decode(raw, type=Message) for raw in self.messages]
        except INVALID_JSON as error:
            raise BadRequest(f"`messages` must be messages of AG-UI: {error}") from None


def decode_run_input(body: bytes) -> RunInput:
    """Return the request of a body.

    Raises:
        BadRequest: The body is not such a request, or its thread cannot be in a path.
    """
    try:
        wanted = msgspec.json.decode(body, type=RunInput)
    except INVALID_JSON as error:
        raise BadRequest(f"The body must be a `RunAgentInput` of AG-UI: {error}") from None
    if wanted.thread_id in DOT_SEGMENTS:
        raise BadRequest(f"`threadId` must not be {wanted.thread_id!r}, which clients remove from paths")
    return wanted


def build_question(messages: list[Message]) -> Question:
    """Return the last message as question, and those before it as history.

    Raises:
        BadRequest: The last message is not a text of the user.
    """
    if not messages or messages[-1].role != "user" or not messages[-1].text:
        raise BadRequest("The last of `messages` must have the role `user`, and text")
    turns = [Turn(message.role, message.text) for message in messages[:-1] if message.role in ROLES]
    return Question(messages[-1].text, [turn for turn in turns if turn.content])

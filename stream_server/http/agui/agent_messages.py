"""What AI agents in tasks do, as reasoning messages and tool calls. Pure.

A client that connects again gets only what its messages lack: they are compared by id, and reasoning by its text, too.
"""

from __future__ import annotations

from stream_server.http.agui.requests import Message
from stream_server.http.chat.agent_steps import AgentStep, Thought, ToolEnded, ToolStarted
from stream_server.protocol.schema import Json

NO_RESULT = "The tool has returned nothing"
"""Content for calls without a result. A call without any would be one that the page has to carry out."""

NO_RESULT_YET = "The tool has not returned yet"
"""Content for calls without a result while a task asks a human. The result replaces it in a later response."""

MAX_CONTENT_CHARACTERS = 4096
"""Longest content of a result. Clients send their messages back with each request, whose size is limited."""


class AgentMessages:
    """The messages of the agents of a run.

    Args:
        run_id: The DAG run, which the ids of these messages begin with.
        known: The messages of the client.
    """

    def __init__(self, run_id: str, known: list[Message]) -> None:
        self._run_id = run_id
        self._known = {message.id: message.text for message in known}
        """By id, the text that the client has, and that the frames have not repeated."""

        self._known_arguments = {call: text for message in known for call, text in message.arguments.items()}
        """By call, the arguments that the client has."""

        self._sections: dict[str, None] = {}
        """Ids of the reasoning messages that the frames have repeated or begun."""

        self._open: dict[str, None] = {}
        """Ids of open reasoning messages."""

        self._pending: dict[str, None] = {}
        """Calls without a result."""

    def translate(self, step: AgentStep) -> list[Json]:
        """Return the events of a step."""
        match step:
            case Thought():
                return self._think(self._identify(step.section), step.text)
            case ToolStarted():
                return [*self.end_reasoning(), *self._call(self._identify(step.call_id), step)]
            case ToolEnded(name=None):
                return []
            case ToolEnded():
                return [*self.end_reasoning(), *self._finish_call(self._identify(step.call_id), read_content(step))]

    def is_at_odds(self, step: AgentStep) -> bool:
        """Whether the client has other messages than those that the step continues: old output was dropped."""
        match step:
            case Thought():
                message_id = self._identify(step.section)
                known = self._known.get(message_id)
                if known is None:
                    return message_id not in self._sections and self._lacks_earlier_section(message_id)
                return not (known.startswith(step.text) or step.text.startswith(known))
            case ToolStarted():
                known = self._known_arguments.get(self._identify(step.call_id), "")
                return not bytes(step.arguments).decode().startswith(known)
            case ToolEnded():
                known = self._known.get(name_result(self._identify(step.call_id)))
                return known == NO_RESULT_YET and step.name is not None

    def _lacks_earlier_section(self, message_id: str) -> bool:
        """Whether the client has an earlier section of the same attempt that the frames do not have any more."""
        attempt, _, index = message_id.rpartition("-")
        known = [other.rpartition("-") for other in self._known if other not in self._sections]
        return any(place == attempt and other.isdecimal() and int(other) < int(index) for place, _, other in known)

    def replace(self, steps: list[AgentStep]) -> list[Json]:
        """Return the messages of the steps that hold. The client gets them instead of all that it has of the run."""
        self._known.clear()
        self._known_arguments.clear()
        self._open.clear()
        self._sections = {self._identify(step.section): None for step in steps if isinstance(step, Thought)}
        ended = {step.call_id for step in steps if isinstance(step, ToolEnded)}
        started = [step.call_id for step in steps if isinstance(step, ToolStarted)]
        self._pending = {self._identify(call_id): None for call_id in started if call_id not in ended}
        return self._build(steps)

    def _build(self, steps: list[AgentStep]) -> list[Json]:
        messages: dict[str, Json] = {}
        for step in steps:
            match step:
                case Thought():
                    message_id = self._identify(step.section)
                    begun = messages.setdefault(message_id, {"id": message_id, "role": "reasoning", "content": ""})
                    begun["content"] += step.text
                case ToolStarted():
                    call_id = self._identify(step.call_id)
                    function = {"name": step.name, "arguments": bytes(step.arguments).decode()}
                    calls = [{"id": call_id, "type": "function", "function": function}]
                    messages[call_id] = {"id": call_id, "role": "assistant", "toolCalls": calls}
                case ToolEnded() if step.name is not None:
                    call_id = self._identify(step.call_id)
                    result = {"id": name_result(call_id), **build_result(call_id, read_content(step))}
                    messages[result["id"]] = result
        return list(messages.values())

    def end(self, content: str = NO_RESULT) -> list[Json]:
        """Return the events that end what is open.

        Args:
            content: That of the results of calls that have none.
        """
        events = self.end_reasoning()
        for call_id in list(self._pending):
            events += self._finish_call(call_id, content)
        return events

    def end_reasoning(self) -> list[Json]:
        """Return the events that end open reasoning. Calls may get their results in a later response."""
        ids = [*self._open]
        self._open.clear()
        kinds = ("REASONING_MESSAGE_END", "REASONING_END")
        return [{"type": kind, "messageId": message_id} for message_id in ids for kind in kinds]

    def _think(self, message_id: str, text: str) -> list[Json]:
        self._sections[message_id] = None
        known = self._known.get(message_id, "")
        self._known[message_id] = known[len(text) :]
        rest = text.removeprefix(known)
        if known.startswith(text) or not rest:
            return []
        events: list[Json] = []
        if message_id not in self._open:
            self._open[message_id] = None
            events.append({"type": "REASONING_START", "messageId": message_id})
            events.append({"type": "REASONING_MESSAGE_START", "messageId": message_id, "role": "reasoning"})
        return [*events, {"type": "REASONING_MESSAGE_CONTENT", "messageId": message_id, "delta": rest}]

    def _call(self, call_id: str, step: ToolStarted) -> list[Json]:
        self._pending[call_id] = None
        arguments, known = bytes(step.arguments).decode(), self._known_arguments.get(call_id)
        if known == arguments:
            return []
        # Clients append to the arguments of a call that they have.
        arguments = arguments.removeprefix(known or "")
        return [
            {"type": "TOOL_CALL_START", "toolCallId": call_id, "toolCallName": step.name},
            {"type": "TOOL_CALL_ARGS", "toolCallId": call_id, "delta": arguments},
            {"type": "TOOL_CALL_END", "toolCallId": call_id},
        ]

    def _finish_call(self, call_id: str, content: str) -> list[Json]:
        self._pending.pop(call_id, None)
        message_id = name_result(call_id)
        if message_id in self._known:
            return []
        return [{"type": "TOOL_CALL_RESULT", "messageId": message_id, **build_result(call_id, content)}]

    def _identify(self, name: str) -> str:
        return f"{self._run_id}/{name}"


def name_result(call_id: str) -> str:
    return f"{call_id}/result"


def build_result(call_id: str, content: str) -> Json:
    return {"role": "tool", "toolCallId": call_id, "content": content}


def read_content(step: ToolEnded) -> str:
    """Return the result for people, cut if it is long."""
    text = step.error
    if text is None:
        text = "" if step.result is None else bytes(step.result).decode()
    return text if len(text) <= MAX_CONTENT_CHARACTERS else text[: MAX_CONTENT_CHARACTERS - 1] + "…"

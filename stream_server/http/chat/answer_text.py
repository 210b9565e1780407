"""The text of an answer, assembled from the output of tasks as it arrives. Pure.

A client of a chat API can only append text. So output of one task instance is sent as it comes, and that of others
waits until the outcome. A retraction (`reset`) is sent as late as possible: while the new text repeats the old one,
nothing is sent, since most tasks that are retried write the same text again.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

PARAGRAPH = "\n\n"
"""What separates the messages of an agent."""


class Append(NamedTuple):
    """The answer goes on with a text."""

    text: str


class Restart(NamedTuple):
    """The text that was sent is no longer the answer; the answer begins again, with another text."""

    text: str


TextStep: TypeAlias = Append | Restart
TaskInstanceKey: TypeAlias = tuple[str, int]
"""Task and map index."""

Attempt: TypeAlias = tuple[int, int]
"""Iteration of the task loop, or 0, and number of the try. The output of the largest one holds."""


class AnswerText:
    """The text that a client has received, and what follows it.

    Args:
        shown: The text that the client has from an earlier response. It is not sent again.
    """

    def __init__(self, shown: str = "") -> None:
        self._parts: list[str] = []
        """The text since the last retraction."""

        self._shown = shown
        """The text that the client has received and that was retracted, while `_parts` only repeat it."""

        self._repeated = 0
        """Characters of `_shown` that `_parts` repeat."""

        self._current: TaskInstanceKey | None = None
        self._attempts: dict[TaskInstanceKey, Attempt] = {}
        self._waiting: dict[TaskInstanceKey, list[str]] = {}

    @property
    def text(self) -> str:
        """The text since the last retraction, with the output that waits."""
        return "\n".join(["".join(parts) for parts in (self._parts, *self._waiting.values()) if parts])

    @property
    def sent(self) -> str:
        """The text that the client has."""
        return self._shown if self._repeated < len(self._shown) else "".join(self._parts)

    @property
    def is_empty(self) -> bool:
        """Whether there is no text since the last retraction."""
        return not self._parts and not self._waiting

    def add_output(self, key: TaskInstanceKey, attempt: Attempt, text: str) -> list[TextStep]:
        """Add output of a task instance. A later attempt takes the output of the earlier one back."""
        last = self._attempts.get(key, attempt)
        if attempt < last or not text:
            return []
        if attempt > last:
            self._retract_instance(key)
        self._attempts[key] = attempt
        if self._current is None:
            self._current = key
        if key != self._current:
            self._waiting.setdefault(key, []).append(text)
            return []
        return self._append(text)

    def retract(self) -> None:
        """Begin again: what was sent may not hold any more. All output that holds follows."""
        self._retract_parts()
        self._current = None
        self._waiting.clear()
        self._attempts.clear()

    def finish(self, final: str | None) -> list[TextStep]:
        """End the answer.

        Args:
            final: The whole text; `None` if it is the output of the tasks.
        """
        whole = self.text if final is None else final
        shown = self.sent
        self._parts, self._shown, self._repeated = [whole], "", 0
        self._waiting.clear()
        # An agent returns its last message, and has streamed earlier ones before it: `authoring.pydantic_ai`.
        if whole == shown or (whole and shown.endswith(PARAGRAPH + whole)):
            return []
        if whole.startswith(shown):
            return [Append(whole[len(shown) :])]
        return [Restart(whole)]

    def _retract_instance(self, key: TaskInstanceKey) -> None:
        if key == self._current:
            self._retract_parts()
        else:
            self._waiting.pop(key, None)

    def _retract_parts(self) -> None:
        if self._repeated == len(self._shown):
            self._shown = "".join(self._parts)
        # Else the client has still the text of an earlier retraction.
        self._parts, self._repeated = [], 0

    def _append(self, text: str) -> list[TextStep]:
        self._parts.append(text)
        if self._repeated == len(self._shown):
            return [Append(text)]
        if self._shown.startswith(text, self._repeated):
            self._repeated += len(text)
            return []
        rest = self._shown[self._repeated :]
        self._repeated = len(self._shown)
        return [Append(text[len(rest) :]) if text.startswith(rest) else Restart("".join(self._parts))]

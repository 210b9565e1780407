"""A question with the conversation before it, as the DAGs of the chat page get it in their `conf`. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple


class Turn(NamedTuple):
    """A message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""

    content: str


class Question(NamedTuple):
    """The last message of a user, and the messages before it."""

    message: str
    history: list[Turn]

    @property
    def conf(self) -> dict[str, Any]:
        """The `conf` of a run."""
        return {"message": self.message, "history": [turn._asdict() for turn in self.history]}

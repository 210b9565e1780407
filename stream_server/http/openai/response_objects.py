"""JSON of the Responses API: responses, and the events of their streams. Pure.

The id of a response has the run in it, so that a response can be retrieved from any server, and nothing is stored.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.protocol.schema import Json

ID_PREFIX = "resp_"
MAX_ID_LENGTH = 2000

ITEM_STATUSES = {"queued": "in_progress", "in_progress": "in_progress", "completed": "completed"}
"""Status of the item by that of its response; `incomplete` for all others, which have ended without an answer."""


def encode_response_id(key: RunKey) -> str:
    """Return the id of the response that a run gives."""
    return ID_PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_response_id(text: str) -> RunKey | None:
    """Return the run of a response; `None` if the id is not valid."""
    encoded = text.removeprefix(ID_PREFIX)
    if encoded == text or len(text) > MAX_ID_LENGTH:
        return None
    try:
        return RunKey(*msgspec.json.decode(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=_Run))
    except (binascii.Error, ValueError):
        return None


class _Run(NamedTuple):
    dag_id: str
    run_id: str


class ResponseHead(NamedTuple):
    """What all versions of a response have in common."""

    key: RunKey
    created_at: int
    """Seconds since the epoch."""

    is_background: bool = False
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None

    @property
    def message_id(self) -> str:
        """ID of the item with the answer."""
        return f"msg_{self.key.run_id}"

    def build_response(
        self,
        status: str,
        text: str | None = None,
        *,
        thinking: str = "",
        error: Json | None = None,
        usage: Json | None = None,
    ) -> Json:
        """Return the response.

        Args:
            status: `queued`, `in_progress`, `completed`, `failed` or `cancelled`.
            text: The text of the answer; `None` for no output.
            thinking: The thinking of AI agents. It follows the answer, which has the first place in a stream.
            error: `{"code", "message"}`.
            usage: That of a chat completion.
        """
        return {
            "id": encode_response_id(self.key),
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": self.is_background,
            "model": self.key.dag_id,
            "output": [*([] if text is None else [self.build_item(text, status)]), *self._build_reasoning(thinking)],
            "error": error,
            "incomplete_details": None,
            "instructions": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": False,
            "previous_response_id": self.previous_response_id,
            "temperature": None,
            "tool_choice": "none",
            "tools": [],
            "top_p": None,
            "usage": None if usage is None else _build_usage(usage),
        }

    def _build_reasoning(self, thinking: str) -> list[Json]:
        content = [{"type": "reasoning_text", "text": thinking}]
        return (
            [{"type": "reasoning", "id": f"rs_{self.key.run_id}", "summary": [], "content": content}]
            if thinking
            else []
        )

    def build_item(self, text: str | None, response_status: str) -> Json:
        """Return the item of the output. A `text` of `None` is the empty item at the beginning."""
        return {
            "type": "message",
            "id": self.message_id,
            "status": ITEM_STATUSES.get(response_status, "incomplete"),
            "role": "assistant",
            "content": [] if text is None else [build_part(text)],
        }


def build_part(text: str) -> Json:
    """Return the only part of the item."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def encode_named_event(kind: str, sequence_number: int, members: Json) -> bytes:
    """Return an event with a name, which is its `type`, too."""
    data = msgspec.json.encode({"type": kind, "sequence_number": sequence_number, **members})
    return f"event: {kind}\ndata: ".encode() + data + b"\n\n"


def _build_usage(usage: Json) -> Json:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }

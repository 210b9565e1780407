"""JSON of Chat Completions: completions, chunks, models and errors. Pure."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec

from stream_server.protocol.schema import Json

DONE = b"data: [DONE]\n\n"
USAGE_MEMBERS = ("prompt_tokens", "completion_tokens", "total_tokens")

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""Type of an error by status; `server_error` from 500 on, and `invalid_request_error` for all others."""


class CompletionHead(NamedTuple):
    """What all chunks of a completion have in common."""

    id: str
    created: int
    """Seconds since the epoch."""

    model: str

    @classmethod
    def of_run(cls, model: str, run_id: str) -> CompletionHead:
        """Return the head of a completion that begins now."""
        return cls(f"chatcmpl-{run_id}", int(time.time()), model)

    def build_chunk(self, delta: Json, finish_reason: str | None = None, **members: object) -> bytes:
        """Return an event with a part of the message."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._encode_event([choice], members)

    def build_usage_chunk(self, usage: Json) -> bytes:
        """Return the event with the usage, which has no part of the message."""
        return self._encode_event([], {"usage": usage})

    def build_completion(self, content: str, usage: Json, thinking: str = "") -> Json:
        """Return the body of a response that is not streamed."""
        message = {"role": "assistant", "content": content, "refusal": None}
        if thinking:
            message["reasoning_content"] = thinking
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**self._members("chat.completion"), "choices": [choice], "usage": usage}

    def _members(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _encode_event(self, choices: list[Json], members: Json) -> bytes:
        return encode_event({**self._members("chat.completion.chunk"), "choices": choices, **members})


def encode_event(value: object) -> bytes:
    """Return an event without a name. JSON has no line ends."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def build_usage(value: Any) -> Json:  # noqa: ANN401 # any JSON value
    """Return the usage that a result has as `usage`. Else it is unknown, which clients accept as zeros only."""
    reported = value.get("usage") if isinstance(value, dict) else None
    counts = reported if isinstance(reported, dict) else {}
    usage = {name: count for name in USAGE_MEMBERS if type(count := counts.get(name, 0)) is int}
    usage = {name: usage.get(name, 0) for name in USAGE_MEMBERS}
    usage["total_tokens"] = usage["total_tokens"] or usage["prompt_tokens"] + usage["completion_tokens"]
    return usage


def build_model(dag_id: str) -> Json:
    """Return a DAG as a model. Airflow does not know when a DAG was created first."""
    return {"id": dag_id, "object": "model", "created": 0, "owned_by": "airflow"}


def build_error(message: str, status: int, code: str) -> Json:
    """Return the body of an error, which is also the event of an error in a stream."""
    server_error = 500
    kind = ERROR_TYPES.get(status, "server_error" if status >= server_error else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}

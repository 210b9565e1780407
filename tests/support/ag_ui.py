"""Clients of AG-UI, and what they read."""

from __future__ import annotations

import json
from typing import Any

from support.node_clients import ClientProcess
from support.server import RunningServer

AGENT = "/api/v2/dags/chat/ag-ui"
QUESTION = {"id": "m1", "role": "user", "content": "Why?"}
BODY = {"threadId": "t1", "runId": "first", "messages": [QUESTION]}


def arguments(server: RunningServer, key: str, *rest: str) -> list[str]:
    return ["ag-ui.js", f"{server.url}{AGENT}", key, "t1", *(rest or ("run",))]


async def events_until(script: ClientProcess, kind: str) -> list[dict[str, Any]]:
    """Return the events up to one of a type."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != kind:
        line = await script.next()
        assert line["type"] == "event", line
        found.append(line["event"])
    return found


def read_events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def text_of(closed: dict[str, Any]) -> str:
    """Return the text of the answer, which is the only message of this client about the run."""
    (text,) = [one["content"] for one in closed["messages"][3:] if one["role"] == "assistant"]
    assert isinstance(text, str)
    return text

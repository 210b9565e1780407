"""Questions beside a live table."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from stream_server.cli import terminal_questions
from stream_server.cli.terminal_questions import TerminalQuestions
from stream_server.protocol.input_frames import Input
from support.builders import KEY, at

REQUEST = Input(
    **KEY._asdict(), task_id="ask", map_index=-1, try_number=1, asked_at=at(0), subject="Go on?", options=["Yes"]
)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


async def test_the_cursor_is_shown_if_the_run_ends_while_a_question_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    is_waiting = asyncio.Event()

    async def wait(_: str) -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    async def send(*_: Any) -> None:
        raise AssertionError("there is no answer")

    monkeypatch.setattr(terminal_questions, "read_terminal_line", wait)
    screen = io.StringIO()
    live = Live("the table", console=Console(file=screen, force_terminal=True, width=80), auto_refresh=False)
    before = asyncio.all_tasks()
    with live, TerminalQuestions(live, send) as questions:
        questions.update(REQUEST)
        await is_waiting.wait()
        shown = screen.getvalue()
        (task,) = asyncio.all_tasks() - before
    await asyncio.wait({task})
    assert not live.is_started
    assert "the table" in screen.getvalue().removeprefix(shown), "the end of the run is shown"
    assert HIDE in screen.getvalue()
    assert screen.getvalue().rfind(SHOW) > screen.getvalue().rfind(HIDE)

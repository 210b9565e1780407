"""Reading the frames of a run until its answer is complete, or as far as it is known."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import anyio
from starlette.requests import Request

from stream_server.http.chat.agent_steps import join_thinking
from stream_server.http.chat.answer import Answer, Failed, Finished
from stream_server.http.chat.run import AnsweringRun
from stream_server.http.delivery.due_frames import watch_due_frames
from stream_server.http.state import State
from stream_server.protocol.wire import Wire

VALUE_READ_SECONDS = 5.0
"""Timeout of the read of a result that exists."""


class AnswerState(NamedTuple):
    """An answer as far as it is known."""

    text: str
    end: Finished | Failed | None
    """`None` while it is in progress."""

    thinking: str
    """The thinking of AI agents."""


class _Reader:
    def __init__(self) -> None:
        self._answer = Answer(keeps_thinking=True)
        self._end: Finished | Failed | None = None

    def apply(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            for step in self._answer.apply(wire.frame):
                if isinstance(step, (Finished, Failed)):
                    self._end = step

    @property
    def state(self) -> AnswerState:
        return AnswerState(self._answer.text, self._end, join_thinking(self._answer.agent_steps))


async def read_whole_answer(request: Request, run: AnsweringRun, transport: str) -> AnswerState:
    """Wait for the end of an answer, however long that takes; there is none if the client disconnects before.

    Args:
        request: The request; its body has been read.
        run: The run. Its subscription is closed at the end, and `on_gone` is called if the client has disconnected.
        transport: One of `scheduler.TRANSPORTS`.
    """
    state: State = request.scope["state"]
    reader, subscription = _Reader(), run.subscription
    with (
        closing(subscription),
        watch_due_frames(subscription, request.receive) as frames,
        state["scheduler"].counters[transport].count_waiting(),
    ):
        while not frames.have_ended:
            reader.apply(await frames.take() or ())
    if run.on_gone is not None and not subscription.is_complete:
        run.on_gone()
    return reader.state


async def read_answer_so_far(request: Request, run: AnsweringRun) -> AnswerState:
    """Return an answer as it is now. The subscription of the run is closed at the end."""
    reader = _Reader()
    reader.apply(await read_frames_so_far(request, run))
    return reader.state


async def read_frames_so_far(request: Request, run: AnsweringRun) -> list[Wire]:
    """Return the frames that a client which connects now gets. The subscription of the run is closed at the end."""
    state: State = request.scope["state"]
    subscription = run.subscription
    with (
        closing(subscription),
        watch_due_frames(subscription, request.receive) as frames,
        anyio.move_on_after(VALUE_READ_SECONDS),
    ):
        found = [*subscription.take()]
        while state["hub"].is_reading_values(run.key) and not frames.have_ended:
            found += await frames.take() or ()
    return found

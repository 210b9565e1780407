"""The frames that a resuming client has missed, made of journal rows while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import ParamSpec, TypeVar

from stream_server.domain.replay import Gap
from stream_server.domain.transition import Transition
from stream_server.hub.filters import Filter, ReadPermissions
from stream_server.hub.firehose import replay, required_resources, reset_wires
from stream_server.hub.watched_runs import RunSource
from stream_server.protocol.cursor import JournalPosition, ResumePoint
from stream_server.protocol.frames import ResetReason
from stream_server.protocol.wire import Wire

_P = ParamSpec("_P")
_T = TypeVar("_T")

ROWS_AT_ONCE = 300
"""Rows of which the event loop makes frames in one step. A row takes up to 20 µs, with its JSON."""


async def encode_replay(
    make: Callable[_P, list[Wire] | None], history: Sequence[Transition], *args: _P.args, **kwargs: _P.kwargs
) -> list[Wire] | None:
    """Return the frames that a function makes of a history.

    If there are many rows, the function is called in a thread, which also encodes the frames as JSON.
    """
    return await _call_for_history(partial(_make_wires, make, *args, **kwargs), history)


async def replay_firehose(
    source: RunSource,
    wanted: Filter,
    resume_from: ResumePoint,
    position: JournalPosition,
    reason: ResetReason | None,
    *,
    permissions: ReadPermissions | None,
) -> list[Wire]:
    """Return what a client of many runs has missed, or a `reset`.

    Args:
        source: Where the history is read from.
        wanted: Which transitions it gets.
        resume_from: Where it resumes.
        position: Later rows follow live.
        reason: Why it can't resume; `None` if nothing is known against it.
        permissions: What may be sent; `None` for everything.
    """
    if resume_from.token is None or reason is not None:
        return reset_wires(reason or "cursor_damaged", position)
    history = await source.read_history(None, resume_from.token.position, output=wanted.wants_output)
    if history is None:
        return reset_wires("cursor_expired", position)
    gap = Gap(resume_from.token, position, history)
    readable = None
    if permissions is not None:
        resources = await _call_for_history(partial(required_resources, wanted, gap.rows), history)
        readable = await permissions.filter_readable(resources)
    wires = await encode_replay(replay, history, wanted, gap, readable)
    assert wires is not None, "a stream of many runs has nothing to retract"
    return wires


async def _call_for_history(function: Callable[[], _T], history: Sequence[Transition]) -> _T:
    if len(history) > ROWS_AT_ONCE:
        return await asyncio.to_thread(function)
    return function()


def _make_wires(make: Callable[_P, list[Wire] | None], *args: _P.args, **kwargs: _P.kwargs) -> list[Wire] | None:
    wires = make(*args, **kwargs)
    for wire in wires or ():
        # It is kept, and the size of the queue needs it.
        _ = wire.json
    return wires

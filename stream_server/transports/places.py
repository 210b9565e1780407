"""The places of callers, as transports keep and use them; `admitted` gives them out."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Scope

from stream_server.admission import Place
from stream_server.transports.request import State

PLACE = "stream_server.place"
"""Where a scope has its caller's `Place`."""


def keep_place(scope: Scope, over: asyncio.Future[Any]) -> None:
    """Have a stream keep the place of its request until it is over."""
    place: Place | None = scope.get(PLACE)
    if place is not None:
        place.held = True
        over.add_done_callback(lambda _: place.leave())


def join(scope: Scope) -> None:
    """Begin something more on a connection, such as a subscription.

    Raises:
        TooManyJoins: The caller has begun too much of late.
    """
    state: State = scope["state"]
    place: Place | None = scope.get(PLACE)
    if place is not None:
        state["admission"].join(place.caller, now())


def now() -> float:
    """Return the time by which joins are counted."""
    return asyncio.get_running_loop().time()

"""A subscription for as long as a context lasts. Pure."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from stream_server.hub.subscription import Subscription

Asked_contra = TypeVar("Asked_contra", contravariant=True)
Place = TypeVar("Place")


class Host(Protocol[Asked_contra, Place]):
    """Who has subscriptions to give."""

    async def come(self, asked: Asked_contra) -> tuple[Place, Subscription]:
        """Begin with what was asked for, or raise what is wrong with it."""

    def leave(self, place: Place, subscription: Subscription) -> None:
        """End it."""


class Stay(AbstractAsyncContextManager[Subscription], Generic[Asked_contra, Place]):
    """A subscription that begins on entering, and ends on leaving.

    `contextlib.asynccontextmanager` keeps a suspended generator and its frame instead, for each client as long as it is
    there.

    Args:
        host: Who gives it.
        asked: What is asked for.
    """

    __slots__ = ("_asked", "_given", "_host")

    def __init__(self, host: Host[Asked_contra, Place], asked: Asked_contra) -> None:
        self._host = host
        self._asked = asked
        self._given: tuple[Place, Subscription] | None = None

    async def __aenter__(self) -> Subscription:
        """Begin."""
        self._given = await self._host.come(self._asked)
        return self._given[1]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, where it has begun."""
        if self._given is not None:
            given, self._given = self._given, None
            self._host.leave(*given)

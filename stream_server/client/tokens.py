"""Bearer tokens of a client, which its calls share: a token is renewed once, however many calls need another one."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from stream_server.client.errors import ConnectionLost

TokenSource: TypeAlias = "str | Callable[[], str] | None"
"""A token, or a function that returns a new one: it is called before the first request, and when a token expires."""

AsyncTokenSource: TypeAlias = "str | Callable[[], str | Awaitable[str]] | None"
"""As `TokenSource`; the function may be a coroutine function."""

_TOKEN = re.compile(r"[\x21-\x7e]+")


class SyncTokens:
    """The current token, for calls of any thread."""

    def __init__(self, source: TokenSource) -> None:
        self._source = None if isinstance(source, str) or source is None else source
        self._token = _check_token(source) if isinstance(source, str) else None
        self._lock = threading.Lock()

    @property
    def can_renew(self) -> bool:
        return self._source is not None

    def get(self) -> str | None:
        """Return the current token.

        Raises:
            ConnectionLost: The function raised an `OSError`.
        """
        return self._token if self._token is not None or self._source is None else self.renew(None)

    def renew(self, refused: str | None) -> str | None:
        """Return a token other than `refused`: the current one, if another call has renewed it.

        Raises:
            ConnectionLost: The function raised an `OSError`.
        """
        assert self._source is not None, "only a function renews tokens"
        with self._lock:
            if self._token is None or self._token == refused:
                try:
                    self._token = _check_token(self._source())
                except OSError as error:
                    raise _no_token(error) from error
            return self._token


class AsyncTokens:
    """The current token, for the calls of an event loop. The methods are those of `SyncTokens`."""

    def __init__(self, source: AsyncTokenSource) -> None:
        self._source = None if isinstance(source, str) or source is None else source
        self._token = _check_token(source) if isinstance(source, str) else None
        self._lock = asyncio.Lock()

    @property
    def can_renew(self) -> bool:
        return self._source is not None

    async def get(self) -> str | None:
        return self._token if self._token is not None or self._source is None else await self.renew(None)

    async def renew(self, refused: str | None) -> str | None:
        assert self._source is not None, "only a function renews tokens"
        async with self._lock:
            if self._token is None or self._token == refused:
                try:
                    token = self._source()
                    self._token = _check_token(await token if inspect.isawaitable(token) else token)
                except OSError as error:
                    raise _no_token(error) from error
            return self._token


def _check_token(token: str) -> str:
    """Return the token.

    Raises:
        ValueError: It cannot be sent in a header. The message does not contain it.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token must be printable ASCII characters without spaces, and not be empty")
    return token


def _no_token(error: OSError) -> ConnectionLost:
    lost = ConnectionLost(f"no new token ({type(error).__name__}: {error})")
    lost.may_have_arrived = False
    return lost

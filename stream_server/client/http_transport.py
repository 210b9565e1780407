"""The only module with an HTTP library: httpx, or httpx2, which has the same interface.

Its exceptions become `ConnectionLost` and `RequestTimeout` here.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import ModuleType
from typing import Any

from stream_server import __version__
from stream_server.client.errors import ClientError, ConnectionLost, RequestTimeout
from stream_server.client.requests import Request, Response

LIBRARIES = ("httpx", "httpx2")
"""The first one that is installed is used, unless the caller passes a client of the other."""

CONNECT_TIMEOUT_SECONDS = 10.0

RECEIVE_TIMEOUT_SECONDS = 60.0
"""A stream without a byte for that long counts as lost. The server sends a `ping` every 15 s by default."""

USER_AGENT = f"airflow-stream-server/{__version__}"


class _Library:
    """An HTTP library, and what its exceptions mean.

    Args:
        client: A client of the library; `None` to use the first one that is installed.
    """

    def __init__(self, client: object | None) -> None:
        self.module: ModuleType = _import_library() if client is None else _module_of(client)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise `ConnectionLost` in place of exceptions about the connection.

        Raises:
            ClientError: The request cannot be sent, however often it is tried.
        """
        library = self.module
        try:
            yield
        except (library.LocalProtocolError, library.UnsupportedProtocol) as error:
            raise ClientError(f"the request cannot be sent ({type(error).__name__}: {error})") from error
        except library.RequestError as error:
            is_timeout = isinstance(error, library.TimeoutException)
            lost = (RequestTimeout if is_timeout else ConnectionLost)(f"{type(error).__name__}: {error}")
            # The connection was not made, so that no request was sent.
            lost.may_have_arrived = not isinstance(
                error, (library.ConnectError, library.ConnectTimeout, library.PoolTimeout)
            )
            raise lost from error

    def options(self) -> dict[str, Any]:
        """Return the arguments of a client of its own: any number of connections, since calls wait for long."""
        return {"limits": self.module.Limits(max_connections=None, max_keepalive_connections=20)}

    def arguments(self, base_url: str, request: Request, token: str | None, read_timeout: float) -> dict[str, Any]:
        """Return the arguments of `request` and `stream`."""
        headers = {"User-Agent": USER_AGENT, **request.headers}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        timeout = self.module.Timeout(read_timeout, connect=min(CONNECT_TIMEOUT_SECONDS, read_timeout))
        return {
            "method": request.method,
            "url": base_url + request.target,
            "headers": headers,
            "content": request.content,
            "timeout": timeout,
            "follow_redirects": False,
        }


class SyncTransport:
    """Sends requests, and blocks meanwhile.

    Args:
        base_url: The server.
        client: A `Client` of httpx or httpx2, which the caller closes; by default one of its own.
    """

    def __init__(self, base_url: str, client: Any = None) -> None:
        self._base_url = base_url
        self._library = _Library(client)
        self._owns_client = client is None
        self._client: Any = self._library.module.Client(**self._library.options()) if client is None else client

    def send(self, request: Request, token: str | None, read_timeout: float) -> Response:
        """Return the response, whatever its status.

        Raises:
            ConnectionLost: There was none.
        """
        with self._library.translate_errors():
            received = self._client.request(**self._library.arguments(self._base_url, request, token, read_timeout))
            return Response(received.status_code, _lower(received.headers), received.content)

    @contextmanager
    def stream(self, request: Request, token: str | None) -> Iterator[tuple[Response, Iterator[bytes]]]:
        """Open a stream: a response, with a body only if its status is an error, and the parts of the body.

        Raises:
            ConnectionLost: The connection failed or broke.
        """
        arguments = self._library.arguments(self._base_url, request, token, RECEIVE_TIMEOUT_SECONDS)
        with self._library.translate_errors(), self._client.stream(**arguments) as received:
            body = b"" if received.is_success else received.read()
            yield Response(received.status_code, _lower(received.headers), body), received.iter_bytes()

    def close(self) -> None:
        if self._owns_client:
            self._client.close()


class AsyncTransport:
    """Sends requests with asyncio. The methods are those of `SyncTransport`.

    Args:
        base_url: The server.
        client: An `AsyncClient` of httpx or httpx2, which the caller closes; by default one of its own.
    """

    def __init__(self, base_url: str, client: Any = None) -> None:
        self._base_url = base_url
        self._library = _Library(client)
        self._owns_client = client is None
        self._client: Any = self._library.module.AsyncClient(**self._library.options()) if client is None else client

    async def send(self, request: Request, token: str | None, read_timeout: float) -> Response:
        with self._library.translate_errors():
            received = await self._client.request(
                **self._library.arguments(self._base_url, request, token, read_timeout)
            )
            return Response(received.status_code, _lower(received.headers), received.content)

    @asynccontextmanager
    async def stream(self, request: Request, token: str | None) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
        arguments = self._library.arguments(self._base_url, request, token, RECEIVE_TIMEOUT_SECONDS)
        with self._library.translate_errors():
            async with self._client.stream(**arguments) as received:
                body = b"" if received.is_success else await received.aread()
                yield Response(received.status_code, _lower(received.headers), body), received.aiter_bytes()

    async def close(self) -> None:
        if self._owns_client:
            await self._client.aclose()


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _import_library() -> ModuleType:
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ModuleNotFoundError(
        "the client needs the extra 'client': pip install 'airflow-stream-server[client]'", name=LIBRARIES[0]
    )


def _module_of(client: object) -> ModuleType:
    """Return the library of a client, which may be a subclass.

    Raises:
        TypeError: It is no client of httpx or httpx2.
    """
    for kind in type(client).__mro__:
        if (name := kind.__module__.partition(".")[0]) in LIBRARIES:
            return importlib.import_module(name)
    raise TypeError(f"`http_client` must be a client of {' or '.join(LIBRARIES)}, got {type(client).__qualname__}")

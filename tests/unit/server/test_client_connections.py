from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from stream_server.http.delivery.asgi_scope import CONNECTION, RESPONSE, SERVER_SEND_KEY, find_extension
from stream_server.server import client_connections
from stream_server.server.app import Application
from stream_server.server.client_connections import ResponseHeads


def test_heads_are_cached_until_uvicorn_changes_the_date() -> None:
    heads, default_headers = ResponseHeads(), [(b"date", b"now")]
    heads.for_default_headers(default_headers)["kind"] = b"head"
    assert heads.for_default_headers(default_headers) == {"kind": b"head"}
    # Equal headers, but of another second.
    assert heads.for_default_headers(list(default_headers)) == {}


def test_number_of_cached_heads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connections, "MAX_CACHED_HEADS", 3)
    heads, default_headers = ResponseHeads(), [(b"date", b"now")]
    for kind in range(10):
        heads.for_default_headers(default_headers)[kind] = b"head"
        assert len(heads.for_default_headers(default_headers)) <= 3


class Cycle:
    """The object that uvicorn's `receive` is bound to."""

    transport: Any = None
    disconnected = False

    async def receive(self) -> Any:
        """Receive nothing."""


async def no_send(_message: Any) -> None:
    """Send nothing."""


async def no_receive() -> Any:
    """Receive nothing."""


class Endpoint:
    """Records what a scope contains during a request."""

    def __init__(self) -> None:
        self.response: Any = None
        self.has_send = False

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        self.response = find_extension(scope, RESPONSE)
        self.has_send = SERVER_SEND_KEY in scope


async def call(scope: Scope, receive: Receive) -> Endpoint:
    app, endpoint = Application(), Endpoint()
    app.router.default = endpoint
    await app(scope, receive, no_send)
    return endpoint


async def test_scope_has_the_response_of_uvicorn_during_the_request() -> None:
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "extensions": {"theirs": {}}}
    endpoint = await call(scope, Cycle().receive)
    assert isinstance(endpoint.response, client_connections.UvicornResponse)
    assert endpoint.has_send
    assert scope["extensions"] == {"theirs": {}}
    assert SERVER_SEND_KEY not in scope, "it refers to the request of the server, which refers to the scope"


async def test_scope_has_no_response_under_other_servers() -> None:
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "extensions": None}
    endpoint = await call(scope, no_receive)
    assert endpoint.response is None
    assert endpoint.has_send


async def test_scope_has_no_send_where_the_connection_is_ours() -> None:
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "extensions": {CONNECTION: object()}}
    assert not (await call(scope, Cycle().receive)).has_send

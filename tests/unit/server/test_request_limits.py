from __future__ import annotations

import asyncio

import pytest

from stream_server.server.request_limits import get_address


@pytest.mark.parametrize(
    ("peername", "expected"),
    [
        (("127.0.0.1", 80), ("127.0.0.1", 80)),
        (("::1", 80, 0, 0), ("::1", 80)),
        ("/run/server.sock", ("/run/server.sock", None)),
        ("", None),
        (None, None),
    ],
)
def test_an_address_has_the_form_of_asgi(peername: object, expected: object) -> None:
    assert get_address(asyncio.Transport(extra={"peername": peername}), "peername") == expected

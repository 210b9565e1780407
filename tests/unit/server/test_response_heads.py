from __future__ import annotations

import pytest

from stream_server.server import connections as protocols
from stream_server.server.connections import ResponseHeads


def test_heads_are_kept_until_uvicorn_has_another_date() -> None:
    heads, dated = ResponseHeads(), [(b"date", b"now")]
    heads.for_default_headers(dated)["kind"] = b"head"
    assert heads.for_default_headers(dated) == {"kind": b"head"}
    # Equal, and yet another second's.
    assert heads.for_default_headers(list(dated)) == {}


def test_as_many_heads_as_clients_think_up_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "MAX_CACHED_HEADS", 3)
    heads, dated = ResponseHeads(), [(b"date", b"now")]
    for kind in range(10):
        heads.for_default_headers(dated)[kind] = b"head"
        assert len(heads.for_default_headers(dated)) <= 3

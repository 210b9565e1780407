from __future__ import annotations

import pytest

from stream_server.server import connections as protocols
from stream_server.server.connections import Heads


def test_heads_are_kept_until_uvicorn_has_another_date() -> None:
    heads, dated = Heads(), [(b"date", b"now")]
    heads.of(dated)["kind"] = b"head"
    assert heads.of(dated) == {"kind": b"head"}
    # Equal, and yet another second's.
    assert heads.of(list(dated)) == {}


def test_as_many_heads_as_clients_think_up_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "MOST_HEADS", 3)
    heads, dated = Heads(), [(b"date", b"now")]
    for kind in range(10):
        heads.of(dated)[kind] = b"head"
        assert len(heads.of(dated)) <= 3

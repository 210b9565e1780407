from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from stream_server.hub.filters import Filter, Resource
from stream_server.hub.firehose import Firehose
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from support.firehose_rows import cursor, last_cursor, output_row, sent_types, transition


def test_a_batch_whose_frames_cannot_be_made_causes_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(), subscription, cursor(1), 0.0)
    sent_types(subscription)
    firehose.dispatch([transition(1), transition(2)._replace(map_index=None)], cursor(3), 0.0)
    wires = subscription.take()
    assert [wire.type for wire in wires] == ["reset"]
    assert last_cursor(wires) == cursor(3)
    firehose.dispatch([transition(3)], cursor(4), 0.0)
    assert sent_types(subscription) == ["task"]
    assert "Cannot make the frames of a batch" in caplog.text


class FailingPermissions:
    """Permissions whose check raises."""

    max_wait = 10.0

    def may_read(self, reading: Resource) -> bool | None:
        raise RuntimeError("no permissions")

    def request_decision(self, readings: Collection[Resource], then: Callable[[], None]) -> None:
        raise NotImplementedError

    async def filter_readable(self, readings: Collection[Resource]) -> Collection[Resource]:
        raise NotImplementedError


def test_an_error_in_one_group_closes_its_connections_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    firehose, faulty, sound = Firehose(), Subscription(10**6), Subscription(10**6)
    firehose.add(Filter(), faulty, cursor(1), 0.0, FailingPermissions())
    firehose.add(Filter(), sound, cursor(1), 0.0)
    firehose.dispatch([transition(1)], cursor(2), 0.0)
    assert sent_types(sound) == ["ping", "task"]
    assert sent_types(faulty) == ["ping", "close"]
    assert faulty.closed is not None
    assert faulty.closed.code == CloseCode.INTERNAL
    assert "no permissions" in caplog.text
    firehose.remove(faulty)
    firehose.dispatch([transition(2)], cursor(3), 0.0)
    assert sent_types(sound) == ["task"]


def test_output_that_is_nested_too_deeply_is_no_frame() -> None:
    firehose, subscription = Firehose(), Subscription(10**6)
    firehose.add(Filter(types=frozenset({"chunk"})), subscription, cursor(1), 0.0)
    sent_types(subscription)
    deep = '{"try_number": 1, "index": 0, "items": [{"chunk": ' + "[" * 5000 + "]" * 5000 + "}]}"
    firehose.dispatch([output_row(1)._replace(body=deep), output_row(2)], cursor(3), 0.0)
    assert sent_types(subscription) == ["chunk"]

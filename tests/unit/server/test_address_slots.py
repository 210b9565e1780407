"""Connections are counted by address."""

from __future__ import annotations

import pytest

from stream_server.server.address_slots import AddressSlots


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.0.0.7", "10.1.2.3", "/run/a"]
)
def test_loopback_and_trusted_proxies_are_not_counted(host: str) -> None:
    assert AddressSlots(1, ("10.0.0.7", "10.1.0.0/16")).key_of(host) is None


def test_addresses_of_one_ipv6_network_count_as_one() -> None:
    slots = AddressSlots(1, ())
    first, second, other = map(slots.key_of, ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"))
    assert first == second != other
    assert slots.key_of("203.0.113.7") == slots.key_of("::ffff:203.0.113.7") != first


def test_a_released_connection_leaves_nothing() -> None:
    slots = AddressSlots(1, ())
    assert [slots.acquire("a"), slots.acquire("a"), slots.acquire("b")] == [1, 2, 1]
    for key in "aab":
        slots.release(key)
    assert len(slots) == 0

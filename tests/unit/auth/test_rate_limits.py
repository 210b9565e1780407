from __future__ import annotations

import pytest

from stream_server.auth import rate_limits
from stream_server.auth.rate_limits import BURST_SECONDS, RateLimits, caller_of_address
from stream_server.errors import TooManyJoins, TooManyStreams

KEY = b"k" * 32


def joins_allowed(limits: RateLimits, caller: str | None, now: float) -> int:
    """Return how many of a thousand joins a caller gets before a refusal."""
    for count in range(1000):
        try:
            limits.record_join(caller, now)
        except TooManyJoins:
            return count
    return 1000


def test_a_burst_and_then_the_rate() -> None:
    limits = RateLimits(10, 2.0, KEY)
    assert joins_allowed(limits, "a", 0.0) == 2 * BURST_SECONDS
    assert [joins_allowed(limits, "a", now) for now in (0.4, 0.5, 2.0, 2.1)] == [0, 1, 3, 0]
    assert joins_allowed(limits, "b", 2.1) == 2 * BURST_SECONDS
    assert joins_allowed(limits, "a", 2.0 + BURST_SECONDS) == 2 * BURST_SECONDS


def test_a_refusal_has_retry_after_and_does_not_count() -> None:
    limits = RateLimits(10, 0.25, KEY)
    joins_allowed(limits, "a", 0.0)
    with pytest.raises(TooManyJoins) as refused:
        limits.record_join("a", 0.0)
    again = refused.value.retry_after
    assert again is not None
    assert joins_allowed(limits, "a", float(again)) >= 1


def test_slots_are_counted_by_caller() -> None:
    limits = RateLimits(2, 100.0, KEY)
    first, _ = limits.acquire("a", 0.0), limits.acquire("a", 0.0)
    with pytest.raises(TooManyStreams, match="2 streams"):
        limits.acquire("a", 0.0)
    limits.acquire("b", 0.0)
    first.release()
    first.release()
    limits.acquire("a", 0.0)
    with pytest.raises(TooManyStreams):
        limits.acquire("a", 0.0)


def test_a_slot_is_attributed_to_another_caller() -> None:
    limits = RateLimits(1, 100.0, KEY)
    slot = limits.acquire("address", 0.0)
    slot.attribute_to("ada")
    limits.acquire("address", 0.0)
    with pytest.raises(TooManyStreams):
        limits.acquire("ada", 0.0)
    other = limits.acquire("elsewhere", 0.0)
    with pytest.raises(TooManyStreams):
        other.attribute_to("ada")
    slot.release()
    other.attribute_to("ada")
    other.release()
    limits.acquire("elsewhere", 0.0)
    limits.acquire("ada", 0.0)


def test_authentication_moves_slot_and_join_to_the_caller() -> None:
    limits = RateLimits(1, 0.2, KEY)
    slot = limits.acquire("address", 0.0)
    slot.authenticate_as("ada", 0.0)
    assert (joins_allowed(limits, "address", 0.0), joins_allowed(limits, "ada", 0.0)) == (2, 1)
    limits.take("address")
    with pytest.raises(TooManyStreams):
        limits.take("ada")
    with pytest.raises(TooManyJoins):
        limits.acquire(None, 0.0).authenticate_as("ada", 0.0)
    # Authenticating again has no effect.
    slot.authenticate_as("ada", 0.0)
    assert slot.joining_caller == "ada"


def test_a_slot_can_be_reattributed_beyond_the_limit() -> None:
    limits = RateLimits(1, 100.0, KEY)
    slot, other = limits.acquire("ada", 0.0), limits.acquire("bob", 0.0)
    slot.attribute_without_limit("bob")
    assert slot.joining_caller == "bob"
    limits.acquire("ada", 0.0)
    slot.release()
    with pytest.raises(TooManyStreams):
        limits.take("bob")
    other.release()
    limits.take("bob")


def test_a_caller_that_is_none_has_no_limits() -> None:
    limits = RateLimits(1, 0.001, KEY)
    assert joins_allowed(limits, None, 0.0) == 1000
    slots = [limits.acquire(None, 0.0) for _ in range(5)]
    for slot in slots:
        slot.release()


def test_the_number_of_callers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_CALLERS", 3)
    limits = RateLimits(1, 0.1, KEY)
    for caller in "abcd":
        limits.record_join(caller, 0.0)
    assert list(limits._burst_full_at) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        *((None, None), ("127.0.0.1", None), ("127.9.9.9", None), ("::1", None), ("::ffff:127.0.0.1", None)),
        *(("203.0.113.7", "address 203.0.113.7"), ("::ffff:203.0.113.7", "address 203.0.113.7")),
        *(("2001:db8:1:2:3:4:5:6", "address 2001:db8:1:2::/64"), ("2001:db8:1:2::1", "address 2001:db8:1:2::/64")),
        *(("unix", "address unix"), ("x" * 500, f"address {'x' * 100}")),
    ],
)
def test_callers_by_address(host: str | None, caller: str | None) -> None:
    assert caller_of_address(host) == caller


def test_callers_of_credentials_are_keyed_digests() -> None:
    limits, others = RateLimits(1, 1.0, KEY), RateLimits(1, 1.0, b"o" * 32)
    ada, bob = {"authorization": "Bearer token-of-ada"}, {"authorization": "Bearer bob", "cookie": "a=b"}
    assert limits.caller_of_credential(ada) == limits.caller_of_credential(dict(ada))
    assert (
        len(
            {
                limits.caller_of_credential(ada),
                limits.caller_of_credential(bob),
                others.caller_of_credential(ada),
                limits.caller_of_credential({"cookie": "a"}),
            }
        )
        == 4
    )
    assert "token-of-ada" not in limits.caller_of_credential(ada)
    assert limits.caller_of_credential({"cookie": "\udcff"})


def test_the_number_of_verified_credentials_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_CALLERS", 2)
    limits = RateLimits(1, 1.0, KEY)
    for identity in "aba":
        limits.mark_verified(identity)
    limits.mark_verified("c")
    assert [limits.is_verified(identity) for identity in "abc"] == [True, False, True]


def test_streams_of_a_connection_count_beside_its_slot() -> None:
    limits = RateLimits(3, 100.0, KEY)
    slot = limits.acquire("a", 0.0)
    for streams in (1, 2, 3):
        slot.count_streams(streams)
    with pytest.raises(TooManyStreams):
        slot.count_streams(4)
    with pytest.raises(TooManyStreams):
        limits.acquire("a", 0.0)
    slot.count_streams(2)
    limits.acquire("a", 0.0).release()
    slot.attribute_without_limit("b")
    limits.acquire("b", 0.0)
    with pytest.raises(TooManyStreams):
        limits.acquire("b", 0.0)
    for _ in range(3):
        limits.acquire("a", 0.0)
    slot.release()
    slot.count_streams(5)
    for _ in range(2):
        limits.acquire("b", 0.0)

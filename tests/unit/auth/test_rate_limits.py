from __future__ import annotations

import pytest

from stream_server.auth import rate_limits as admission
from stream_server.auth.rate_limits import BURST_SECONDS, Admission, address_caller
from stream_server.errors import TooManyJoins, TooManyStreams

KEY = b"k" * 32


def begun(limits: Admission, caller: str | None, now: float) -> int:
    """How many joins a caller gets before he is refused, of a thousand."""
    for count in range(1000):
        try:
            limits.join(caller, now)
        except TooManyJoins:
            return count
    return 1000


def test_a_burst_and_then_the_rate() -> None:
    limits = Admission(10, 2.0, KEY)
    assert begun(limits, "a", 0.0) == 2 * BURST_SECONDS
    assert [begun(limits, "a", now) for now in (0.4, 0.5, 2.0, 2.1)] == [0, 1, 3, 0]
    assert begun(limits, "b", 2.1) == 2 * BURST_SECONDS
    assert begun(limits, "a", 2.0 + BURST_SECONDS) == 2 * BURST_SECONDS


def test_a_refusal_says_when_and_costs_nothing() -> None:
    limits = Admission(10, 0.25, KEY)
    begun(limits, "a", 0.0)
    with pytest.raises(TooManyJoins) as refused:
        limits.join("a", 0.0)
    again = refused.value.retry_after
    assert again is not None
    assert begun(limits, "a", float(again)) >= 1


def test_places_are_counted_by_caller() -> None:
    limits = Admission(2, 100.0, KEY)
    first, _ = limits.enter("a", 0.0), limits.enter("a", 0.0)
    with pytest.raises(TooManyStreams, match="2 streams"):
        limits.enter("a", 0.0)
    limits.enter("b", 0.0)
    first.leave()
    first.leave()
    limits.enter("a", 0.0)
    with pytest.raises(TooManyStreams):
        limits.enter("a", 0.0)


def test_a_place_passes_to_who_the_caller_turns_out_to_be() -> None:
    limits = Admission(1, 100.0, KEY)
    place = limits.enter("address", 0.0)
    place.pass_to("ada")
    limits.enter("address", 0.0)
    with pytest.raises(TooManyStreams):
        limits.enter("ada", 0.0)
    other = limits.enter("elsewhere", 0.0)
    with pytest.raises(TooManyStreams):
        other.pass_to("ada")
    place.leave()
    other.pass_to("ada")
    other.leave()
    limits.enter("elsewhere", 0.0)
    limits.enter("ada", 0.0)


def test_who_introduces_himself_takes_what_he_has_begun_upon_himself() -> None:
    limits = Admission(1, 0.2, KEY)
    place = limits.enter("address", 0.0)
    place.introduce("ada", 0.0)
    assert (begun(limits, "address", 0.0), begun(limits, "ada", 0.0)) == (2, 1)
    limits.occupy("address")
    with pytest.raises(TooManyStreams):
        limits.occupy("ada")
    with pytest.raises(TooManyJoins):
        limits.enter(None, 0.0).introduce("ada", 0.0)
    # A second time does nothing.
    place.introduce("ada", 0.0)
    assert place.joins_as == "ada"


def test_who_goes_on_under_another_name_keeps_his_place_though_he_has_as_many_as_he_may() -> None:
    limits = Admission(1, 100.0, KEY)
    place, other = limits.enter("ada", 0.0), limits.enter("bob", 0.0)
    place.know_as("bob")
    assert place.joins_as == "bob"
    limits.enter("ada", 0.0)
    place.leave()
    with pytest.raises(TooManyStreams):
        limits.occupy("bob")
    other.leave()
    limits.occupy("bob")


def test_who_is_nobody_is_not_bounded() -> None:
    limits = Admission(1, 0.001, KEY)
    assert begun(limits, None, 0.0) == 1000
    places = [limits.enter(None, 0.0) for _ in range(5)]
    for place in places:
        place.leave()


def test_callers_are_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_CALLERS", 3)
    limits = Admission(1, 0.1, KEY)
    for caller in "abcd":
        limits.join(caller, 0.0)
    assert list(limits._free) == ["b", "c", "d"]


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
    assert address_caller(host) == caller


def test_credentials_are_told_apart_by_digests_that_need_the_key() -> None:
    limits, others = Admission(1, 1.0, KEY), Admission(1, 1.0, b"o" * 32)
    ada, bob = {"authorization": "Bearer ada"}, {"authorization": "Bearer bob", "cookie": "a=b"}
    assert limits.identity(ada) == limits.identity(dict(ada))
    assert (
        len({limits.identity(ada), limits.identity(bob), others.identity(ada), limits.identity({"cookie": "a"})}) == 4
    )
    assert "ada" not in limits.identity(ada)
    assert limits.identity({"cookie": "\udcff"})


def test_credentials_that_were_good_are_remembered_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_CALLERS", 2)
    limits = Admission(1, 1.0, KEY)
    for identity in "aba":
        limits.vouch(identity)
    limits.vouch("c")
    assert [limits.vouched(identity) for identity in "abc"] == [True, False, True]

"""How many streams a caller may have, and how fast he may begin them.

Pure: times are given, in seconds of any steady clock.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from stream_server.errors import TooManyJoins, TooManyStreams

BURST_SECONDS = 10.0
"""Who has been quiet for so long may begin at once what he may begin in that time, as after a restart of ours."""

RETRY_SECONDS = 5
"""When to try again who has too many streams: one of them may have ended by then."""

MAX_CALLERS = 100_000
"""Callers whose joins are counted; of more, who has not come for the longest time is forgotten."""


class Place:
    """One request or stream of a caller, to be left when it is over."""

    __slots__ = ("_admission", "caller", "held", "joins_as")

    def __init__(self, admission: Admission, caller: str | None) -> None:
        self._admission: Admission | None = admission
        self.caller = caller
        self.joins_as = caller
        """Who begins what is begun on this connection."""

        self.held = False
        """Whether a stream has it that outlives its request."""

    def pass_to(self, caller: str | None) -> None:
        """Count it for somebody else: for who the caller has turned out to be.

        Raises:
            TooManyStreams: He has as many as he may.
        """
        if self._admission is not None and caller != self.caller:
            self._admission.occupy(caller)
            self._admission.vacate(self.caller)
            self.caller = caller

    def introduce(self, caller: str, now: float) -> None:
        """Count it, and all that is begun on it, for who has shown that he is the caller.

        Raises:
            TooManyJoins: He has begun too many of late.
            TooManyStreams: He has as many as he may.
        """
        if self._admission is None or caller == self.joins_as:
            return
        self._admission.join(caller, now)
        self.pass_to(caller)
        self._admission.give_back_join(self.joins_as)
        self.joins_as = caller

    def know_as(self, caller: str) -> None:
        """Count it for the caller, even if he has as many as he may: it is there already."""
        if self._admission is not None and caller != self.caller:
            self._admission.vacate(self.caller)
            self._admission.add(caller)
        self.caller = self.joins_as = caller

    def leave(self, _over: object = None) -> None:
        """Make room. A second time does nothing."""
        if self._admission is not None:
            self._admission.vacate(self.caller)
            self._admission = None


class Admission:
    """Who has how much. A caller that is `None` is not bounded.

    Args:
        max_streams: Streams and waiting requests that a caller may have at once.
        joins_per_second: Requests and subscriptions that a caller may begin in a second; ten times as many at once.
        key: Of the digests that credentials are remembered by.
    """

    def __init__(self, max_streams: int, joins_per_second: float, key: bytes) -> None:
        self._max_streams = max_streams
        self._rate = joins_per_second
        self._streams: Counter[str] = Counter()
        self._free: OrderedDict[str, float] = OrderedDict()
        """When each caller's burst is whole again."""

        self._key = key
        self._vouched: OrderedDict[str, None] = OrderedDict()

    def identity(self, credential: Mapping[str, str]) -> str:
        """Return who somebody is that shows a credential, as far as it is good."""
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        for name in sorted(credential):
            digest.update(f"{name}:{len(credential[name])}:{credential[name]}".encode("utf-8", "surrogateescape"))
        return f"credential {digest.hexdigest()}"

    def vouch(self, identity: str) -> None:
        """Remember that a credential was good: from now on its caller is not one with all who share his address.

        Who makes up credentials is not helped by it, since none of them is good.
        """
        self._vouched[identity] = None
        self._vouched.move_to_end(identity)
        if len(self._vouched) > MAX_CALLERS:
            self._vouched.popitem(last=False)

    def vouched(self, identity: str) -> bool:
        """Tell whether a credential was good."""
        return identity in self._vouched

    def enter(self, caller: str | None, now: float) -> Place:
        """Begin a request.

        Raises:
            TooManyJoins: The caller has begun too many of late.
            TooManyStreams: He has too many.
        """
        self.join(caller, now)
        self.occupy(caller)
        return Place(self, caller)

    def join(self, caller: str | None, now: float) -> None:
        """Begin something that is no request of its own, such as a subscription.

        Raises:
            TooManyJoins: The caller has begun too many of late.
        """
        if caller is None:
            return
        whole = max(self._free.get(caller, now), now) + 1 / self._rate
        if whole - now > BURST_SECONDS:
            raise TooManyJoins(
                f"You begin more than {self._rate:g} requests a second (STREAM_SERVER_MAX_JOINS_PER_SECOND)",
                math.ceil(whole - now - BURST_SECONDS),
            )
        self._free[caller] = whole
        self._free.move_to_end(caller)
        if len(self._free) > MAX_CALLERS:
            self._free.popitem(last=False)

    def give_back_join(self, caller: str | None) -> None:
        """Undo a join that was another caller's."""
        if caller is not None and caller in self._free:
            self._free[caller] -= 1 / self._rate

    def occupy(self, caller: str | None) -> None:
        """Count one more for a caller.

        Raises:
            TooManyStreams: He has as many as he may.
        """
        if caller is None:
            return
        if self._streams[caller] >= self._max_streams:
            raise TooManyStreams(
                f"You have {self._max_streams} streams and waiting requests here, the most that one caller may have"
                " (STREAM_SERVER_MAX_STREAMS_PER_CALLER). A proxy counts as one caller, unless it is named in"
                " STREAM_SERVER_TRUSTED_PROXIES",
                RETRY_SECONDS,
            )
        self.add(caller)

    def add(self, caller: str) -> None:
        """Count one more for a caller, however many he has."""
        self._streams[caller] += 1

    def vacate(self, caller: str | None) -> None:
        """Count one less."""
        if caller is None:
            return
        self._streams[caller] -= 1
        if not self._streams[caller]:
            del self._streams[caller]


@lru_cache(maxsize=1024)
def address_caller(host: str | None) -> str | None:
    """Return who a caller is that has shown nothing but his address.

    Of IPv6 addresses the network counts, since a host has as many as it likes there (RFC 6177). Nobody is `None`: who
    is on this very machine is its operator, or a proxy that was not named.
    """
    if host is None:
        return None
    try:
        address = ip_address(host)
    except ValueError:
        return f"address {host[:100]}"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif not address.is_loopback:
            return f"address {IPv6Address(int(address) >> 64 << 64)}/64"
    return None if address.is_loopback else f"address {address}"

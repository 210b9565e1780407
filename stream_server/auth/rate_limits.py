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


class CallerSlot:
    """One request or stream of a caller, to be left when it is over."""

    __slots__ = ("_limits", "caller", "joining_caller", "outlives_request")

    def __init__(self, admission: RateLimits, caller: str | None) -> None:
        self._limits: RateLimits | None = admission
        self.caller = caller
        self.joining_caller = caller
        """Who begins what is begun on this connection."""

        self.outlives_request = False
        """Whether a stream has it that outlives its request."""

    def attribute_to(self, caller: str | None) -> None:
        """Count it for somebody else: for who the caller has turned out to be.

        Raises:
            TooManyStreams: He has as many as he may.
        """
        if self._limits is not None and caller != self.caller:
            self._limits.take(caller)
            self._limits.release(self.caller)
            self.caller = caller

    def authenticate_as(self, caller: str, now: float) -> None:
        """Count it, and all that is begun on it, for who has shown that he is the caller.

        Raises:
            TooManyJoins: He has begun too many of late.
            TooManyStreams: He has as many as he may.
        """
        if self._limits is None or caller == self.joining_caller:
            return
        self._limits.record_join(caller, now)
        self.attribute_to(caller)
        self._limits.refund_join(self.joining_caller)
        self.joining_caller = caller

    def attribute_without_limit(self, caller: str) -> None:
        """Count it for the caller, even if he has as many as he may: it is there already."""
        if self._limits is not None and caller != self.caller:
            self._limits.release(self.caller)
            self._limits.take_without_limit(caller)
        self.caller = self.joining_caller = caller

    def release(self, _over: object = None) -> None:
        """Make room. A second time does nothing."""
        if self._limits is not None:
            self._limits.release(self.caller)
            self._limits = None


class RateLimits:
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
        self._burst_full_at: OrderedDict[str, float] = OrderedDict()
        """When each caller's burst is whole again."""

        self._key = key
        self._verified: OrderedDict[str, None] = OrderedDict()

    def caller_of_credential(self, credential: Mapping[str, str]) -> str:
        """Return who somebody is that shows a credential, as far as it is good."""
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        for name in sorted(credential):
            digest.update(f"{name}:{len(credential[name])}:{credential[name]}".encode("utf-8", "surrogateescape"))
        return f"credential {digest.hexdigest()}"

    def mark_verified(self, identity: str) -> None:
        """Remember that a credential was good: from now on its caller is not one with all who share his address.

        Who makes up credentials is not helped by it, since none of them is good.
        """
        self._verified[identity] = None
        self._verified.move_to_end(identity)
        if len(self._verified) > MAX_CALLERS:
            self._verified.popitem(last=False)

    def is_verified(self, identity: str) -> bool:
        """Tell whether a credential was good."""
        return identity in self._verified

    def acquire(self, caller: str | None, now: float) -> CallerSlot:
        """Begin a request.

        Raises:
            TooManyJoins: The caller has begun too many of late.
            TooManyStreams: He has too many.
        """
        self.record_join(caller, now)
        self.take(caller)
        return CallerSlot(self, caller)

    def record_join(self, caller: str | None, now: float) -> None:
        """Begin something that is no request of its own, such as a subscription.

        Raises:
            TooManyJoins: The caller has begun too many of late.
        """
        if caller is None:
            return
        whole = max(self._burst_full_at.get(caller, now), now) + 1 / self._rate
        if whole - now > BURST_SECONDS:
            raise TooManyJoins(
                f"You begin more than {self._rate:g} requests a second (STREAM_SERVER_MAX_JOINS_PER_SECOND)",
                math.ceil(whole - now - BURST_SECONDS),
            )
        self._burst_full_at[caller] = whole
        self._burst_full_at.move_to_end(caller)
        if len(self._burst_full_at) > MAX_CALLERS:
            self._burst_full_at.popitem(last=False)

    def refund_join(self, caller: str | None) -> None:
        """Undo a join that was another caller's."""
        if caller is not None and caller in self._burst_full_at:
            self._burst_full_at[caller] -= 1 / self._rate

    def take(self, caller: str | None) -> None:
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
        self.take_without_limit(caller)

    def take_without_limit(self, caller: str) -> None:
        """Count one more for a caller, however many he has."""
        self._streams[caller] += 1

    def release(self, caller: str | None) -> None:
        """Count one less."""
        if caller is None:
            return
        self._streams[caller] -= 1
        if not self._streams[caller]:
            del self._streams[caller]


@lru_cache(maxsize=1024)
def caller_of_address(host: str | None) -> str | None:
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

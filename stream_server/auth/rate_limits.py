"""How many streams a caller may have at once, and how many it may start in a second.

Pure: times are passed in, in seconds of any steady clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from cachetools import LRUCache

from stream_server.auth.credential import credential_digest
from stream_server.errors import TooManyJoins, TooManyStreams

BURST_SECONDS = 10.0
"""A caller that has been quiet for so long may start at once what it may start in that time: all streams of a page
reconnect together after a restart of this server."""

RETRY_SECONDS = 5
"""`Retry-After` for a caller with too many streams: one of them may have ended by then."""

MAX_CALLERS = 100_000
"""Callers whose rates are kept, and credentials that are known to be good. The least recently seen are dropped."""


class CallerSlot:
    """One request, stream or connection of a caller, until `release`. A connection may have many streams."""

    __slots__ = ("_further_streams", "_limits", "caller", "joining_caller", "outlives_request")

    def __init__(self, limits: RateLimits, caller: str | None) -> None:
        # `None` once it has been released.
        self._limits: RateLimits | None = limits
        # Streams of the connection that count beside the slot itself.
        self._further_streams = 0
        self.caller = caller
        """The caller that the slot counts for; `None` if it is not limited."""

        self.joining_caller = caller
        """The caller that what is started on this connection counts for."""

        self.outlives_request = False
        """Whether a stream keeps the slot after the end of its request."""

    def attribute_to(self, caller: str | None) -> None:
        """Count the slot for another caller.

        Raises:
            TooManyStreams: That caller has as many as it may.
        """
        if self._limits is not None and caller != self.caller:
            self._limits.take(caller)
            self._move_further_streams(caller)
            self._limits.release(self.caller)
            self.caller = caller

    def authenticate_as(self, caller: str, now: float) -> None:
        """Count the slot, and everything started on its connection, for a caller whose credential is good.

        Raises:
            TooManyJoins: That caller has started too much in a short time.
            TooManyStreams: That caller has as many as it may.
        """
        if self._limits is None or caller == self.joining_caller:
            return
        self._limits.record_join(caller, now)
        self.attribute_to(caller)
        self._limits.refund_join(self.joining_caller)
        self.joining_caller = caller

    def attribute_without_limit(self, caller: str) -> None:
        """Do as `authenticate_as`, but never raise: the connection is open already, and stays."""
        if self._limits is not None and caller != self.caller:
            self._move_further_streams(caller)
            self._limits.release(self.caller)
            self._limits.take_without_limit(caller)
        self.caller = self.joining_caller = caller

    def count_streams(self, streams: int) -> None:
        """Count the streams of the connection. The slot itself stands for the first one.

        Raises:
            TooManyStreams: The caller has as many as it may. The count stays as it was.
        """
        while self._limits is not None and self._further_streams < streams - 1:
            self._limits.take(self.caller)
            self._further_streams += 1
        while self._limits is not None and self._further_streams > max(streams - 1, 0):
            self._limits.release(self.caller)
            self._further_streams -= 1

    def release(self) -> None:
        """Free the slot, and the streams of its connection. A second call does nothing."""
        self.count_streams(0)
        if self._limits is not None:
            self._limits.release(self.caller)
            self._limits = None

    def _move_further_streams(self, caller: str | None) -> None:
        """Count the streams of the connection for another caller, however many it has: they are open already."""
        assert self._limits is not None, "a released slot has no streams"
        for _ in range(self._further_streams):
            self._limits.release(self.caller)
            if caller is not None:
                self._limits.take_without_limit(caller)


class RateLimits:
    """The slots and rates of all callers. A caller that is `None` has no limits.

    The rate is limited by GCRA (generic cell rate algorithm, ITU-T I.371): one number for each caller, the time at
    which all that it has started would have been started at exactly the rate.

    Args:
        max_streams: Streams and waiting requests that a caller may have at once.
        joins_per_second: Requests and subscriptions that a caller may start in a second, in the long run.
        key: Key of the digests that stand for credentials.
    """

    def __init__(self, max_streams: int, joins_per_second: float, key: bytes) -> None:
        self._max_streams = max_streams
        self._rate = joins_per_second
        self._streams: Counter[str] = Counter()
        self._burst_full_at: LRUCache[str, float] = LRUCache(MAX_CALLERS)
        self._key = key
        self._verified: LRUCache[str, None] = LRUCache(MAX_CALLERS)

    def caller_of_credential(self, credential: Mapping[str, str]) -> str:
        """Return the caller that a credential stands for, whether or not the credential is good."""
        return f"credential {credential_digest(credential, self._key).hex()}"

    def mark_verified(self, caller: str) -> None:
        """Remember that a credential is good. From now on its caller does not share the limits of its address.

        Other credentials do not count: a client could make up one for each request.
        """
        self._verified[caller] = None

    def is_verified(self, caller: str) -> bool:
        """Whether the credential of a caller is known to be good."""
        return caller in self._verified

    def acquire(self, caller: str | None, now: float) -> CallerSlot:
        """Return a slot for a new request.

        Raises:
            TooManyJoins: The caller has started too much in a short time.
            TooManyStreams: The caller has as many as it may.
        """
        self.record_join(caller, now)
        self.take(caller)
        return CallerSlot(self, caller)

    def record_join(self, caller: str | None, now: float) -> None:
        """Count something that is started without a request of its own, such as a subscription.

        Raises:
            TooManyJoins: The caller has started too much in a short time.
        """
        if caller is None:
            return
        full_at = max(self._burst_full_at.get(caller, now), now) + 1 / self._rate
        if full_at - now > BURST_SECONDS:
            raise TooManyJoins(
                f"You start more than {self._rate:g} requests a second (STREAM_SERVER_MAX_JOINS_PER_SECOND)",
                math.ceil(full_at - now - BURST_SECONDS),
            )
        self._burst_full_at[caller] = full_at

    def refund_join(self, caller: str | None) -> None:
        """Undo a `record_join` that turned out to be another caller's."""
        if caller is not None and caller in self._burst_full_at:
            self._burst_full_at[caller] -= 1 / self._rate

    def take(self, caller: str | None) -> None:
        """Count one more stream.

        Raises:
            TooManyStreams: The caller has as many as it may.
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
        """Count one more stream, however many there are."""
        self._streams[caller] += 1

    def release(self, caller: str | None) -> None:
        """Count one stream less."""
        if caller is None:
            return
        self._streams[caller] -= 1
        if not self._streams[caller]:
            del self._streams[caller]


@lru_cache(maxsize=1024)
def caller_of_address(host: str | None) -> str | None:
    """Return the caller that an address stands for, where there is no good credential.

    For IPv6 it is the /64 network: a host may have any number of addresses there (RFC 6177). Loopback addresses have no
    limits (`None`): they are those of an operator, or of a proxy that is not named in the settings.
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

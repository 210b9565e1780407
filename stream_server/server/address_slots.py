"""How many connections an address may have, whatever is requested on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

from stream_server.auth.rate_limits import caller_of_address


class AddressSlots:
    """The connections of all addresses. Loopback addresses and trusted proxies have no limit.

    Args:
        max_connections: Connections that an address may have, or a /64 network of IPv6 addresses.
        trusted_proxies: Addresses and networks of proxies, which carry the connections of many clients.
    """

    def __init__(self, max_connections: int, trusted_proxies: Sequence[str]) -> None:
        self.max_connections = max_connections
        self._networks = [ip_network(proxy, strict=False) for proxy in trusted_proxies]
        self._connections: Counter[str] = Counter()
        self.key_of = lru_cache(maxsize=1024)(self._key_of)
        """Return what connections are counted by; `None` if they are not limited."""

    def __len__(self) -> int:
        return len(self._connections)

    def acquire(self, key: str) -> int:
        """Count a connection, and return how many there are."""
        self._connections[key] += 1
        return self._connections[key]

    def release(self, key: str) -> None:
        self._connections[key] -= 1
        if not self._connections[key]:
            del self._connections[key]

    def _key_of(self, host: str) -> str | None:
        try:
            address = ip_address(host)
        except ValueError:
            # The path of a Unix socket: a proxy of this machine.
            return None
        return None if any(address in network for network in self._networks) else caller_of_address(host)

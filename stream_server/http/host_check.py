"""Middleware that refuses requests for other hosts, where no credential is needed.

A page of another site can make its own host name stand for a loopback address (DNS rebinding). For the browser, this
server is then of the page's origin: without a credential, the page could read everything. The header `Host` has the
page's name then, which no script can change.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from stream_server.errors import HostNotAllowed
from stream_server.http.problems import ProblemResponse

ANY_HOST = "*"

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:@/\[\]\s]+?)\.?(?::\d{0,5})?", re.IGNORECASE | re.ASCII)
"""RFC 9110 section 7.2: the name or address of a host, and its port."""


class HostCheckMiddleware:
    """ASGI middleware. Loopback names and IP addresses are always allowed; a page cannot rebind an address.

    Args:
        app: The application.
        allowed_hosts: Further names, in lower case; `*` allows all.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            # Programs without a browser may leave out the header (HTTP/1.0).
            for name, value in scope["headers"]:
                if name == b"host" and not is_allowed_host(value, self._allowed_hosts):
                    error = HostNotAllowed(
                        "Without a credential, this server answers requests for localhost and for IP addresses, not for"
                        f" {value.decode('latin-1')[:100]!r}; see STREAM_SERVER_ALLOWED_HOSTS"
                    )
                    await ProblemResponse(error.problem_body(), error.status)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


@lru_cache(maxsize=256)
def is_allowed_host(header: bytes, allowed_hosts: frozenset[str]) -> bool:
    """Whether a header `Host` has a loopback name, an IP address, or one of the given names."""
    match = _HOST.fullmatch(header.decode("latin-1"))
    if ANY_HOST in allowed_hosts:
        return True
    if match is None:
        return False
    host = match[1].lower()
    return host in allowed_hosts or host == "localhost" or host.endswith(".localhost") or _is_address(host.strip("[]"))


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True

"""Who may see what. The seam: an `Authorizer` is asked before any stream begins."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from starlette.requests import HTTPConnection

from stream_server.run_state import RunKey


class Access(NamedTuple):
    """What a caller may see of a run."""

    results: bool
    """Whether he may read return values as well as transitions."""


class Authorizer(Protocol):
    """Decides what a caller may see."""

    async def authorize(self, caller: HTTPConnection, key: RunKey) -> Access:
        """Return what a caller may see of a run, or raise the error that tells him why he may not."""


class Everybody:
    """`--auth none`: everybody may see everything."""

    async def authorize(self, caller: HTTPConnection, key: RunKey) -> Access:
        """Return that all may be seen."""
        return Access(results=True)

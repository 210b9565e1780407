"""Letting callers in, and keeping their streams to what they may see."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple

from stream_server.auth.authorizer import (
    ACCESS_WITHOUT_VALUES,
    Access,
    Authorizer,
    Caller,
    LivePermission,
    OnTokenExpiring,
    StreamScope,
)
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.hub.firehose import Filter
from stream_server.hub.subscription import Subscription


class Permission(NamedTuple):
    """Who was let in, to what."""

    authorizer: Authorizer
    caller: Caller
    scope: StreamScope
    access: Access

    def restrict_options(self, question: WatchOptions) -> WatchOptions:
        """Return a question as the caller may ask it."""
        return question if self.access.can_read_values else replace(question, redact_values=True)

    def restrict_filter(self, wanted: Filter) -> Filter:
        """Return a filter for the runs of a DAG as the caller may have it."""
        return wanted._replace(redacted=self.scope.output and not self.access.can_read_values)

    def guarded(
        self, watch: AbstractAsyncContextManager[Subscription], expiring: OnTokenExpiring | None = None
    ) -> Guarded:
        """Keep a stream to what the caller may see. `expiring` is as for `Authorizer.guard`."""
        return Guarded(self, watch, expiring)


class Guarded(AbstractAsyncContextManager[Subscription]):
    """A stream that is kept to what its caller may see, for as long as it is entered."""

    __slots__ = ("_expiring", "_permission", "_watch", "guard")

    def __init__(
        self, permission: Permission, watch: AbstractAsyncContextManager[Subscription], expiring: OnTokenExpiring | None
    ) -> None:
        self._permission, self._watch, self._expiring = permission, watch, expiring
        self.guard: LivePermission | None = None

    @property
    def scope(self) -> StreamScope:
        """What it shows."""
        return self._permission.scope

    async def __aenter__(self) -> Subscription:
        """Begin."""
        subscription = await self._watch.__aenter__()
        authorizer, caller, scope, access = self._permission
        self.guard = authorizer.register_stream(caller, scope, access, subscription, self._expiring)
        return subscription

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End."""
        if self.guard is not None:
            self.guard.release()
        return await self._watch.__aexit__(kind, error, traceback)


async def authorize_run(authorizer: Authorizer, caller: Caller, key: RunKey) -> Permission:
    """Let a caller in to a run, or raise the error that tells him why not."""
    return Permission(authorizer, caller, StreamScope(*key), await authorizer.check_run(caller, key))


async def authorize_dag(authorizer: Authorizer, caller: Caller, dag_id: str, *, output: bool) -> Permission:
    """Let a caller in to all runs of a DAG, or raise the error that tells him why not."""
    access = await authorizer.check_dag(caller, dag_id, output=output)
    return Permission(authorizer, caller, StreamScope(dag_id, output=output), access)


async def authorize_firehose(authorizer: Authorizer, caller: Caller) -> Permission:
    """Let a caller in to the runs of all DAGs that he may read, or raise the error that tells him why not."""
    await authorizer.check_dags(caller)
    return Permission(authorizer, caller, StreamScope(), ACCESS_WITHOUT_VALUES)


def ignore_expiry(_subscription: Subscription, _expires_at: object) -> None:
    """Do nothing before a token expires, for those who wait for one answer: coming again would gain them nothing."""

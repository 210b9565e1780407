"""Letting callers in, and keeping their streams to what they may see."""

from __future__ import annotations

from dataclasses import replace
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

    def bind(self, subscription: Subscription, expiring: OnTokenExpiring | None = None) -> LivePermission | None:
        """Revalidate the permission until the subscription is closed; the arguments are those of `register_stream`."""
        guard = self.authorizer.register_stream(self.caller, self.scope, self.access, subscription, expiring)
        if guard is not None:
            subscription.on_close(guard.release)
        return guard


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

"""Authorization of requests, and of the streams that they start."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from stream_server.auth.authorizer import (
    ACCESS_WITHOUT_VALUES,
    Authorizer,
    Caller,
    Grant,
    LivePermission,
    OnTokenExpiring,
    StreamScope,
)
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.hub.filters import Filter
from stream_server.hub.subscription import Subscription


class Permission(NamedTuple):
    """What a caller may see, as the authorizer has decided."""

    authorizer: Authorizer
    grant: Grant

    def restrict_options(self, options: WatchOptions) -> WatchOptions:
        """Return watch options with everything redacted that the caller may not read."""
        access = self.grant.access
        if access.can_read_values and access.can_read_inputs:
            return options
        return replace(options, redact_values=not access.can_read_values, redact_inputs=not access.can_read_inputs)

    def restrict_filter(self, run_filter: Filter) -> Filter:
        """Return the filter of a DAG's runs with everything redacted that the caller may not read."""
        scope, access = self.grant.scope, self.grant.access
        return run_filter._replace(
            redacted=scope.output and not access.can_read_values,
            inputs_redacted=scope.inputs and not access.can_read_inputs,
        )

    def bind(self, subscription: Subscription, expiring: OnTokenExpiring | None = None) -> LivePermission | None:
        """Revalidate the permission until the subscription is closed; the arguments are those of `register_stream`."""
        guard = self.authorizer.register_stream(self.grant, subscription, expiring)
        if guard is not None:
            subscription.on_close(guard.release)
        return guard


async def authorize_run(authorizer: Authorizer, caller: Caller, key: RunKey) -> Permission:
    """Return the permission to watch a run, or raise the error for the caller."""
    access = await authorizer.check_run(caller, key)
    return Permission(authorizer, Grant(caller, StreamScope(*key), access))


async def authorize_dag(
    authorizer: Authorizer, caller: Caller, dag_id: str, *, output: bool, inputs: bool
) -> Permission:
    """Return the permission to watch all runs of a DAG, or raise the error for the caller."""
    access = await authorizer.check_dag(caller, dag_id, output=output, inputs=inputs)
    return Permission(authorizer, Grant(caller, StreamScope(dag_id, output=output, inputs=inputs), access))


async def authorize_firehose(authorizer: Authorizer, caller: Caller) -> Permission:
    """Return the permission to watch the runs of all DAGs that the caller may read, or raise the error for them."""
    await authorizer.check_dags(caller)
    return Permission(authorizer, Grant(caller, StreamScope(), ACCESS_WITHOUT_VALUES))


def ignore_expiry(_subscription: Subscription, _expires_at: object) -> None:
    """Do nothing when a token is about to expire: a call that waits for one response would gain nothing by a retry."""

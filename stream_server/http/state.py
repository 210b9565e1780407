"""The typed state of the application, which its lifespan gives to every request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import httpx

from stream_server.auth.api_keys import ApiKeys
from stream_server.auth.authorizer import Authorizer
from stream_server.auth.rate_limits import RateLimits
from stream_server.http.cancellation import Cancellations
from stream_server.http.deadlines import SharedTimeouts
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.hub.hub import Hub
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.journal.run_store import RunStore
from stream_server.journal.ticket_store import TicketStore
from stream_server.settings import Settings


class State(TypedDict):
    settings: Settings
    hub: Hub
    scheduler: WriteScheduler
    authorizer: Authorizer
    api_keys: ApiKeys
    airflow: httpx.AsyncClient | None
    run_store: RunStore
    idempotency_keys: IdempotencyKeys
    tickets: TicketStore
    cancellations: Cancellations
    rate_limits: RateLimits
    idle_timeouts: SharedTimeouts[Callable[[], None]]
    """Close multiplexed connections that have had no stream for too long."""

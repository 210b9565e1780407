"""Start and stop of what an application needs: connections, hub, journal, authorization."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import httpx
from starlette.applications import Starlette

from stream_server.auth.airflow_api import create_shared_client
from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.authorizer import AllowAll, Authorizer
from stream_server.auth.rate_limits import RateLimits
from stream_server.http.cancellation import Cancellations
from stream_server.http.deadlines import SharedTimeouts
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.state import State
from stream_server.hub.hub import Hub
from stream_server.hub.task_set import TaskSet
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.journal.run_store import RunStore
from stream_server.journal.ticket_store import TicketStore
from stream_server.journal.waiting_servers import WaitingServers
from stream_server.server.journal_service import JournalSource
from stream_server.server.metrics import Metrics
from stream_server.server.request_limits import RequestLimits
from stream_server.server.signal_drain import drain_on_signals
from stream_server.settings import Settings

log = logging.getLogger(__name__)


JournalSourceFactory: TypeAlias = Callable[[Settings, Hub, RunStore, Metrics], JournalSource]
"""Makes what an application hears of the journal by."""


class ServerState(State):
    """What the application's lifespan gives to the server itself and to operators' endpoints, beside that."""

    journal_source: JournalSource
    request_limits: RequestLimits


def make_lifespan(
    settings: Settings, make_journal_source: JournalSourceFactory, *, drains: bool
) -> Callable[[Starlette], Any]:
    """Make the function that starts what the application needs, and stops it at the end."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[ServerState]:
        url = settings.database_url.get_secret_value()
        runs = RunStore(
            url,
            pool_size=settings.pool_size,
            max_result_bytes=settings.max_result_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        metrics = Metrics()
        hub = Hub(runs, max_queued_bytes=settings.max_queued_bytes, observer=metrics)
        age = settings.max_connection_age or None
        courier = WriteScheduler(asyncio.get_running_loop(), settings.ping_interval, age)
        metrics.register_hub(hub)
        metrics.register_scheduler(courier)
        upstream = make_journal_source(settings, hub, runs, metrics)
        cancellations = Cancellations(hub, WaitingServers(runs))
        loop = asyncio.get_running_loop()
        edge = RequestLimits(settings, loop)
        idle: SharedTimeouts[Callable[[], None]] = SharedTimeouts(loop, settings.idle_timeout, lambda over: over())
        airflow: httpx.AsyncClient | None = None
        if settings.airflow_url is not None:
            airflow = create_shared_client(settings.airflow_url, settings.airflow_timeout)
        authorizer: Authorizer = AllowAll()
        if settings.uses_airflow_auth and airflow is not None:
            authorizer = AirflowAuthorizer(airflow, good_for=settings.auth_cache, grace=settings.auth_grace)
        app.state.hub = hub
        tasks = TaskSet("background task", on_end=_stop_process_on_failure)
        tasks.start(upstream.run(), "journal source")
        tasks.start(cancellations.run(), "cancellation")
        if isinstance(authorizer, AirflowAuthorizer):
            tasks.start(authorizer.revalidator.run(), "revalidation")
        state = ServerState(
            settings=settings,
            hub=hub,
            journal_source=upstream,
            scheduler=courier,
            authorizer=authorizer,
            airflow=airflow,
            run_store=runs,
            idempotency_keys=IdempotencyKeys(runs),
            tickets=TicketStore(runs),
            cancellations=cancellations,
            rate_limits=RateLimits(
                settings.max_streams_per_caller, settings.max_joins_per_second, secrets.token_bytes()
            ),
            request_limits=edge,
            idle_timeouts=idle,
        )
        try:
            with drain_on_signals(partial(hub.drain, settings.grace_period)) if drains else nullcontext():
                yield state
        finally:
            edge.close()
            idle.close()
            await cancellations.close()
            if isinstance(authorizer, AirflowAuthorizer):
                await authorizer.close()
            if airflow is not None:
                await airflow.aclose()
            await tasks.aclose()
            await hub.close()
            await runs.close()

    return lifespan


def _stop_process_on_failure(task: asyncio.Task[None]) -> None:
    """Stop a process whose tail has died: a supervisor starts a working one, while a deaf one would look healthy."""
    log.critical(
        "The %s has ended; the process stops", task.get_name(), exc_info=None if task.cancelled() else task.exception()
    )
    os.kill(os.getpid(), signal.SIGTERM)

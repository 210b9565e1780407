"""Start and stop of what an application needs: connections, hub, journal, authorization."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
from starlette.applications import Starlette

from stream_server.auth.airflow_api import create_shared_client
from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.api_keys import ApiKeys
from stream_server.auth.authorizer import AllowAll, Authorizer
from stream_server.auth.rate_limits import RateLimits
from stream_server.http.cancellation import Cancellations
from stream_server.http.deadlines import SharedTimeouts
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.state import State
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.hub.hub import Hub
from stream_server.journal.idempotency_keys import IdempotencyKeys
from stream_server.journal.run_store import RunStore
from stream_server.journal.ticket_store import TicketStore
from stream_server.journal.waiting_servers import WaitingServers
from stream_server.server.journal_service import JournalSource, MakeJournalSource
from stream_server.server.metrics import Metrics
from stream_server.server.metrics_pages import MetricsPages
from stream_server.server.request_limits import RequestLimits
from stream_server.server.signal_drain import drain_on_signals
from stream_server.settings import Settings

log = logging.getLogger(__name__)


class ServerState(State):
    """`State`, and what only the server itself and the operators' endpoints read."""

    journal_source: JournalSource
    request_limits: RequestLimits
    metrics_pages: MetricsPages


def make_lifespan(
    settings: Settings, make_journal_source: MakeJournalSource, *, drains: bool
) -> Callable[[Starlette], Any]:
    """Return the lifespan of an application.

    Args:
        settings: Those of the application.
        make_journal_source: Makes the source of batches.
        drains: Whether the application drains its streams on signals, because its server does not.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[ServerState]:
        # What is started first is stopped last.
        async with AsyncExitStack() as stack:
            state = await _start(stack, settings, make_journal_source)
            app.state.hub = state["hub"]
            if drains:
                stack.enter_context(drain_on_signals(partial(state["hub"].drain, settings.grace_period)))
            yield state

    return lifespan


async def _start(stack: AsyncExitStack, settings: Settings, make_journal_source: MakeJournalSource) -> ServerState:
    loop = asyncio.get_running_loop()
    metrics = Metrics()
    run_store = _open_run_store(stack, settings)
    hub, scheduler = _start_hub(stack, settings, run_store, metrics)
    tasks = TaskSet("background task", on_end=_stop_process)
    stack.push_async_callback(tasks.aclose)

    journal_source = make_journal_source(settings, hub, run_store, metrics)
    tasks.start(journal_source.run(), "journal source")
    metrics_pages = MetricsPages(loop, journal_source.collect_metrics)
    stack.push_async_callback(metrics_pages.close)
    airflow = _open_airflow_client(stack, settings)
    authorizer = _start_authorizer(stack, settings, airflow, tasks)
    cancellations = Cancellations(hub, WaitingServers(run_store))
    stack.push_async_callback(cancellations.close)
    tasks.start(cancellations.run(), "cancellations")

    idle_timeouts: SharedTimeouts[Callable[[], None]] = SharedTimeouts(
        loop, settings.idle_timeout, lambda on_timeout: on_timeout()
    )
    stack.callback(idle_timeouts.close)
    request_limits = RequestLimits(settings, loop)
    stack.callback(request_limits.close)
    return ServerState(
        settings=settings,
        hub=hub,
        journal_source=journal_source,
        scheduler=scheduler,
        authorizer=authorizer,
        api_keys=ApiKeys(settings.api_keys_file, airflow),
        airflow=airflow,
        run_store=run_store,
        idempotency_keys=IdempotencyKeys(run_store),
        tickets=TicketStore(run_store),
        cancellations=cancellations,
        rate_limits=RateLimits(settings.max_streams_per_caller, settings.max_joins_per_second, secrets.token_bytes()),
        request_limits=request_limits,
        metrics_pages=metrics_pages,
        idle_timeouts=idle_timeouts,
    )


def _open_run_store(stack: AsyncExitStack, settings: Settings) -> RunStore:
    run_store = RunStore(
        settings.database_address,
        pool_size=settings.pool_size,
        max_result_bytes=settings.max_result_bytes,
        max_output_bytes=settings.max_output_bytes,
    )
    stack.push_async_callback(run_store.close)
    return run_store


def _start_hub(
    stack: AsyncExitStack, settings: Settings, run_store: RunStore, metrics: Metrics
) -> tuple[Hub, WriteScheduler]:
    hub = Hub(run_store, max_queued_bytes=settings.max_queued_bytes, observer=metrics)
    stack.push_async_callback(hub.close)
    age = settings.max_connection_age or None
    scheduler = WriteScheduler(asyncio.get_running_loop(), settings.ping_interval, age)
    metrics.register_hub(hub)
    metrics.register_scheduler(scheduler)
    return hub, scheduler


def _open_airflow_client(stack: AsyncExitStack, settings: Settings) -> httpx.AsyncClient | None:
    if settings.airflow_url is None:
        return None
    proxy = settings.airflow_proxy
    airflow = create_shared_client(
        settings.airflow_url, settings.airflow_timeout, None if proxy is None else proxy.get_secret_value()
    )
    stack.push_async_callback(airflow.aclose)
    return airflow


def _start_authorizer(
    stack: AsyncExitStack, settings: Settings, airflow: httpx.AsyncClient | None, tasks: TaskSet
) -> Authorizer:
    if not settings.uses_airflow_auth or airflow is None:
        return AllowAll()
    authorizer = AirflowAuthorizer(airflow, good_for=settings.auth_cache, grace=settings.auth_grace)
    stack.push_async_callback(authorizer.close)
    tasks.start(authorizer.revalidator.run(), "revalidation")
    return authorizer


def _stop_process(task: asyncio.Task[None]) -> None:
    """Stop the process when a background task has ended: without it, a server that sends nothing looks healthy.

    A process manager starts a new one.
    """
    error = None if task.cancelled() else task.exception()
    log.critical("The %s has ended; the process stops", task.get_name(), exc_info=error)
    os.kill(os.getpid(), signal.SIGTERM)

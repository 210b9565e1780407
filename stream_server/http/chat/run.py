"""Starting a run for a request, and watching it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import Request

from stream_server.auth.airflow_api import run_path
from stream_server.auth.authorizer import Caller
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import StreamServerError
from stream_server.http.caller import airflow_api_for
from stream_server.http.params import public_path, with_url_prefix
from stream_server.http.permission import authorize_run, ignore_expiry
from stream_server.http.state import State
from stream_server.http.triggering import (
    KeyClaim,
    TriggeredRun,
    name_run_in_errors,
    prepare_cancellation,
    trigger_or_attach,
)
from stream_server.hub.subscription import Subscription
from stream_server.journal.idempotency_keys import CANNOT_STORE
from stream_server.protocol.cursor import ResumePoint

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""Longest time from the end of a response, complete or cut, to a retry of its request. OpenAI's SDKs wait up to 8 s."""


class IdempotencyKey(NamedTuple):
    """What makes two requests the same one, so that the second one starts no run."""

    text: str
    is_retry: bool = True
    """Whether an earlier request may have had the key. If not, a run of the key belongs to an older question."""

    is_derived: bool = False
    """Whether the key was made of the request itself, so that equal questions have the same one.

    Then it expires soon after the response, and the request does not fail if the key can't be stored.
    """


class AnsweringRun(NamedTuple):
    """A run that answers a question, and the subscription of the client that has asked."""

    key: RunKey
    subscription: Subscription
    headers: dict[str, str]
    """Headers of the response that name the run."""

    on_gone: Callable[[], None] | None
    """To be called if the client disconnects before the end."""

    on_responded: Callable[[], Awaitable[None]] | None = None
    """To be awaited when the response has ended, in whatever way."""


async def start_run(
    request: Request,
    caller: Caller,
    dag_id: str,
    conf: Mapping[str, Any],
    key: IdempotencyKey | None,
    *,
    cancel_after: float | None,
) -> AnsweringRun:
    """Start a run with the caller's rights, and watch it.

    Args:
        request: The request.
        caller: The caller, who may read the DAG.
        dag_id: The DAG.
        conf: The `conf` of the run.
        key: The idempotency key.
        cancel_after: Seconds after which a run without clients is set to failed; `None` lets it continue.

    Raises:
        AirflowError: Airflow refuses, or does not answer.
        StreamServerError: The run can't be watched. It exists if the error has the header `Location`.
    """
    state: State = request.scope["state"]
    run = await trigger_run(request, caller, dag_id, conf, key)
    claim = run.claim if key is not None and key.is_derived else None
    if claim is not None and not claim.is_new:
        # The end of an earlier response may have limited the claim, or may do so yet. It must outlive this response.
        claim = await _renew_claim(state, claim)
    with name_run_in_errors(request, run.key):
        watched = await watch_run(request, caller, run.key, resume_from=run.resume_point, cancel_after=cancel_after)
    if claim is None:
        return watched
    return watched._replace(on_responded=partial(_limit_claim, state, claim))


async def watch_run(
    request: Request,
    caller: Caller,
    key: RunKey,
    *,
    resume_from: ResumePoint | None = None,
    cancel_after: float | None = None,
    options: WatchOptions = WatchOptions(),  # noqa: B008 # it is frozen
) -> AnsweringRun:
    """Watch a run, by default up to its result."""
    state: State = request.scope["state"]
    airflow = airflow_api_for(request, caller)
    permission = await authorize_run(state["authorizer"], caller, key)
    options = permission.restrict_options(with_url_prefix(request.scope, options))
    on_gone = await prepare_cancellation(state, airflow, key, options, cancel_after)
    subscription = await state["hub"].subscribe(key, options, resume_from=resume_from)
    run = AnsweringRun(key, subscription, {"Location": public_path(request, run_path(key))}, on_gone)
    with close_on_error(run):
        # A response can't be continued by another one with a new token. It goes on until Airflow refuses the old one.
        permission.bind(subscription, ignore_expiry)
    return run


@contextmanager
def close_on_error(run: AnsweringRun) -> Iterator[None]:
    """Close the subscription of a run if an error leaves no response that does."""
    try:
        yield
    except BaseException:
        run.subscription.close()
        raise


async def _renew_claim(state: State, claim: KeyClaim) -> KeyClaim:
    """Keep a derived key for the time of one more response. Only the end of that response may limit the claim then."""
    lifetime = state["settings"].idempotency_ttl
    try:
        renewal = await state["idempotency_keys"].renew_claim(claim.digest, claim.request, claim.run_id, lifetime)
    except StreamServerError:
        # The claim expires when it would have done so without this request.
        log.warning("The lifetime of a claim could not be set", exc_info=True, extra={"action": "claim_kept"})
        return claim
    return claim._replace(request=renewal)


async def _limit_claim(state: State, claim: KeyClaim) -> None:
    """Keep a derived key for the retries after the response, unless a later request with the key has renewed it."""
    try:
        await state["idempotency_keys"].limit_claim(claim.digest, claim.request, claim.run_id, RETRY_SECONDS)
    except StreamServerError:
        # The claim stays until it expires, or an equal question replaces it.
        log.warning("The lifetime of a claim could not be set", exc_info=True, extra={"action": "claim_kept"})


async def trigger_run(
    request: Request, caller: Caller, dag_id: str, conf: Mapping[str, Any], key: IdempotencyKey | None
) -> TriggeredRun:
    """Trigger a run with the caller's rights. A derived key is left out where it can't be stored."""
    state: State = request.scope["state"]
    airflow, body = airflow_api_for(request, caller), {"conf": conf}
    if key is None:
        return await trigger_or_attach(state, caller, airflow, dag_id, body, key=None)
    try:
        return await trigger_or_attach(state, caller, airflow, dag_id, body, key=key.text, renew=not key.is_retry)
    except CANNOT_STORE:
        if not key.is_derived:
            raise
    return await trigger_or_attach(state, caller, airflow, dag_id, body, key=None)

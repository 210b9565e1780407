"""Triggering a run on behalf of a caller, once for each idempotency key."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request

from stream_server.auth.airflow_api import AirflowApi, run_path
from stream_server.auth.authorizer import Caller
from stream_server.domain.outcome import WatchOptions
from stream_server.domain.run_state import RunKey
from stream_server.errors import (
    AirflowRefused,
    BadRequest,
    IdempotencyKeyReused,
    NoResult,
    RunNotFound,
    StreamServerError,
)
from stream_server.http.params import public_path
from stream_server.http.state import State
from stream_server.protocol.cursor import ResumePoint, ResumeToken

CONFLICT = 409

MAX_KEY_LENGTH = 255


class KeyClaim(NamedTuple):
    """The run of an idempotency key."""

    digest: bytes
    run_id: str
    is_new: bool
    """Whether the key had not been used before."""

    is_run_older: bool
    """Whether the run had existed before the key was used."""

    request: bytes
    """Digest of the request, or what a renewal of the claim has put in its place."""


class TriggeredRun(NamedTuple):
    key: RunKey
    resume_point: ResumePoint | None
    """Position before the run was created; `None` if it had existed before."""

    claim: KeyClaim | None
    """That of the idempotency key."""


async def trigger_or_attach(
    state: State,
    caller: Caller,
    airflow: AirflowApi,
    dag_id: str,
    body: Mapping[str, Any],
    *,
    key: str | None,
    attach: bool = False,
    renew: bool = False,
) -> TriggeredRun:
    """Trigger a run, or find the existing one that the request refers to.

    Args:
        state: The state of the application.
        caller: The caller, for permissions.
        airflow: Airflow's API with the caller's credential.
        dag_id: The DAG.
        body: The body of Airflow's endpoint.
        key: The idempotency key of the request (draft-ietf-httpapi-idempotency-key-header).
        attach: Whether to use an existing run with the `dag_run_id` of the body.
        renew: Whether an earlier claim of the key is dropped, so that a new run is triggered.

    Raises:
        BadRequest: The key is empty or too long.
        IdempotencyKeyReused: The key was used for another request.
        AirflowError: Airflow refuses, or does not answer.
    """
    # Read before the trigger, so that no transition of the new run is missed.
    resume_point = ResumePoint(ResumeToken(state["hub"].cursor), before_creation=True)
    claim = None if key is None else await _claim_key(state, dag_id, body, key, renew=renew)
    attach = attach or (claim is not None and not claim.is_run_older)
    run_id = claim.run_id if claim is not None else body.get("dag_run_id")
    if claim is not None:
        body = {**body, "dag_run_id": claim.run_id}
    try:
        return TriggeredRun(await airflow.trigger_run(dag_id, body), resume_point, claim)
    except AirflowRefused as error:
        if error.status == CONFLICT and run_id is not None and attach:
            # The conflict may concern something else, such as the logical date.
            run = RunKey(dag_id, run_id)
            await state["authorizer"].check_run(caller, run)
            if await _run_exists(state, run):
                return TriggeredRun(run, None, claim)
        if claim is not None and claim.is_new:
            await state["idempotency_keys"].release_run(claim.digest, claim.run_id)
        raise


async def prepare_cancellation(
    state: State, airflow: AirflowApi, key: RunKey, watch_options: WatchOptions, cancel_after: float | None
) -> Callable[[], None] | None:
    """Return a function to call if the client disconnects before the end.

    Args:
        state: The state of the application.
        airflow: Airflow's API with the caller's credential.
        key: The run.
        watch_options: Those of the client.
        cancel_after: Seconds after which a run without clients is set to failed; `None` lets it continue.
    """
    if cancel_after is None:
        return None
    await state["cancellations"].register_run(key)
    return partial(
        state["cancellations"].schedule_cancel, key, watch_options, partial(airflow.fail_run, key), cancel_after
    )


async def find_claimed_run(state: State, dag_id: str, key: str) -> str | None:
    """Return the run that an earlier request with an idempotency key has triggered; `None` if there is none."""
    return await state["idempotency_keys"].find_run(_digest_key(dag_id, key))


@contextmanager
def name_run_in_errors(request: Request, key: RunKey) -> Iterator[None]:
    """Add id and URL of the triggered run to errors, so that clients don't trigger it again."""
    path = public_path(request, run_path(key))
    try:
        yield
    except StreamServerError as error:
        text = str(error)
        if not isinstance(error, NoResult):
            text = f"{text}. Run {key.run_id!r} was triggered; follow it at {path}"
        # A copy: requests that share one look-up share its error.
        raise error.copy_with(text, {"Location": path, **error.headers}) from error


def compute_digest(value: object) -> bytes:
    """Return the digest of a JSON value."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()


def _digest_key(dag_id: str, key: str) -> bytes:
    return compute_digest([dag_id, key])


async def _run_exists(state: State, key: RunKey) -> bool:
    try:
        (await state["hub"].subscribe(key, WatchOptions(), is_client=False)).close()
    except RunNotFound:
        return False
    return True


async def _claim_key(state: State, dag_id: str, body: Mapping[str, Any], key: str, *, renew: bool) -> KeyClaim:
    """Return the run of an idempotency key."""
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise BadRequest(f"`Idempotency-Key` must have 1 to {MAX_KEY_LENGTH} characters, got {len(key)}")
    digest, request = _digest_key(dag_id, key), compute_digest(body)
    named = body.get("dag_run_id")
    # Checked before the claim: a concurrent request with the same key may create the run at any time after it.
    existed = named is not None and await _run_exists(state, RunKey(dag_id, named))
    run_id = named or f"manual__{datetime.now(timezone.utc).isoformat()}_{secrets.token_hex(4)}"

    lifetime = state["settings"].idempotency_ttl
    if renew:
        await state["idempotency_keys"].replace_run(digest, request, run_id, lifetime)
        return KeyClaim(digest, run_id, is_new=True, is_run_older=existed, request=request)
    claim = await state["idempotency_keys"].claim_run(digest, request, run_id, lifetime)
    if not claim.is_same_request:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request to this DAG; use a new key for a new request"
        )
    return KeyClaim(digest, claim.run_id, claim.is_new, existed and claim.is_new, request)

"""`GET …/dagRuns/{run_id}/result`: waiting for the outcome in one call. Waiting asks nothing of the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import run_path
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, StreamServerError, Unavailable
from stream_server.http.caller import identify_caller
from stream_server.http.delivery.streaming_body import wait_for_disconnect
from stream_server.http.endpoints.outcome_body import Hearing, encode_bare_value
from stream_server.http.params import (
    WATCH_PARAMETERS,
    parse_flag,
    parse_integer,
    parse_run_key,
    parse_seconds,
    parse_watch_options,
    raw_query,
)
from stream_server.http.permission import authorize_run, ignore_expiry
from stream_server.http.state import State
from stream_server.hub.subscription import Subscription
from stream_server.protocol.bodies import RunAnswer
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close

DEFAULT_TIMEOUT = 30.0
"""Seconds; shorter than what most proxies allow."""

VALUE_READ_SECONDS = 5.0
"""How long return values may be read after the time is up: they are there, so that reading them is not waiting."""

RETRY_AFTER = "1"
"""Seconds after which to ask again; asking waits, so that there is no need to wait before."""

DEFAULT_FAIL_STATUS = 502
"""HTTP status that tells a failure where the bare value was asked for, unless the caller chooses another."""

FAIL_STATUS_BOUNDS = (400, 599)
"""Bounds of those that can be chosen."""

RESPONSE_PARAMETERS = frozenset({"timeout", "unwrap", "fail_status"})
"""Parameters that say how long to wait, and what the answer looks like."""


STATUS_OF_CLOSE_CODE = {int(CloseCode.UNAUTHENTICATED): 401, int(CloseCode.FORBIDDEN): 403}
"""HTTP statuses that tell what close codes tell."""


class ResponseOptions(NamedTuple):
    """How long to wait, and what the answer looks like."""

    timeout: float
    unwrap: bool
    """Whether to answer with the bare value."""

    fail_status: int
    """HTTP status that tells a failure, where the bare value was asked for."""


def parse_response_options(request: Request) -> ResponseOptions:
    """Return what the query says of the answer.

    Raises:
        BadParameter: A value is wrong.
    """
    return ResponseOptions(
        parse_seconds(request, "timeout", DEFAULT_TIMEOUT),
        parse_flag(request, "unwrap"),
        parse_integer(request, "fail_status", DEFAULT_FAIL_STATUS, *FAIL_STATUS_BOUNDS),
    )


async def get_result(request: Request) -> Response:
    """Answer the request."""
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    key, wanted = parse_run_key(request), parse_response_options(request)
    asked = replace(parse_watch_options(request, WATCH_PARAMETERS | RESPONSE_PARAMETERS), include_output=False)
    permission = await authorize_run(state["authorizer"], caller, key)
    subscription = await state["hub"].subscribe(key, permission.restrict_options(asked))
    permission.bind(subscription, ignore_expiry)
    answer = await wait_for_outcome(request, subscription, key, wanted.timeout)
    here = f"{run_path(key)}/result{raw_query(request)}"
    return build_response(answer, wanted, {"Location": here} if answer.outcome == "pending" else {})


async def wait_for_outcome(
    request: Request,
    subscription: Subscription,
    key: RunKey,
    at_most: float,
    on_gone: Callable[[], None] | None = None,
) -> RunAnswer:
    """Wait for the outcome of a run, or for the time to be up, or for the client to be gone.

    Args:
        request: Who waits; its body has been read.
        subscription: Where the outcome comes from; closed at the end.
        key: The run.
        at_most: Seconds to wait.
        on_gone: Called where the client went.

    Raises:
        Unavailable: The outcome can't be waited for here any more.
        AirflowRefused: The caller may not read the run any more.
    """
    state: State = request.scope["state"]
    hub, hearing = state["hub"], Hearing(key)
    with closing(subscription):
        gone = asyncio.create_task(wait_for_disconnect(request.receive), name="disconnect")
        try:
            with state["scheduler"].counters["result"].count_waiting(), anyio.move_on_after(at_most):
                await _hear(subscription, hearing, gone)
            if not hearing.over and hub.is_reading_values(key):
                with anyio.move_on_after(VALUE_READ_SECONDS):
                    await _hear(subscription, hearing, gone)
            left = gone.done()
        finally:
            gone.cancel()
        answer = hearing.answer(hub.run_state(key))
    if left and on_gone is not None and not hearing.over:
        on_gone()
    if hearing.closed is not None:
        raise _error_of_close(hearing.closed)
    return answer


def _error_of_close(closed: Close) -> StreamServerError:
    """Return the error that tells one who waits for an answer what a stream is told by its close."""
    if closed.code in STATUS_OF_CLOSE_CODE:
        return AirflowRefused(closed.reason, STATUS_OF_CLOSE_CODE[closed.code])
    return Unavailable(f"{closed.reason}; ask again")


async def _hear(subscription: Subscription, hearing: Hearing, gone: asyncio.Task[None]) -> None:
    due = asyncio.Event()
    subscription.on_due(due.set)
    gone.add_done_callback(lambda _: due.set())
    while not hearing.over and not gone.done():
        for wire in subscription.take():
            hearing.hear(wire.frame)
        if not hearing.over:
            await due.wait()
            due.clear()


def build_response(answer: RunAnswer, wanted: ResponseOptions, headers: Mapping[str, str]) -> Response:
    """Return an answer in the form that was asked for.

    Raises:
        BadParameter: The bare value was asked for, and several tasks answer.
        NoResult: It was, and there is none.
    """
    pending = answer.outcome == "pending"
    bare = wanted.unwrap and not pending
    return Response(
        encode_bare_value(answer, wanted.fail_status) if bare else msgspec.json.encode(answer),
        status_code=202 if pending else 200,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **({"Retry-After": RETRY_AFTER} if pending else {}), **headers},
    )

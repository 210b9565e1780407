"""`GET …/dagRuns/{run_id}/result`: wait for the outcome of a run. Waiting sends no queries to the database."""

from __future__ import annotations

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
from stream_server.http.delivery.due_frames import DueFrames, watch_due_frames
from stream_server.http.endpoints.outcome_body import build_answer, encode_bare_value
from stream_server.http.params import (
    WATCH_PARAMETERS,
    parse_flag,
    parse_integer,
    parse_run_key,
    parse_seconds,
    parse_watch_options,
    public_path,
    raw_query,
)
from stream_server.http.permission import authorize_run, ignore_expiry
from stream_server.http.preferences import parse_wait_preference
from stream_server.http.state import State
from stream_server.hub.subscription import Subscription
from stream_server.protocol.bodies import RunAnswer
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.frames import Close

DEFAULT_TIMEOUT = 20.0
"""Seconds from the start of the request. With `VALUE_READ_SECONDS` it is 25 s: many proxies wait for 30 s."""

VALUE_READ_SECONDS = 5.0
"""Additional time to read return values that exist when the timeout expires."""

RETRY_AFTER = "1"
"""Seconds until the next request; short, since that request waits again."""

DEFAULT_FAIL_STATUS = 502
"""Default status of a response to `unwrap=true` without a value."""

FAIL_STATUS_BOUNDS = (400, 599)
"""Smallest and largest `fail_status`."""

RESPONSE_PARAMETERS = frozenset({"timeout", "unwrap", "fail_status"})
"""Query parameters of the timeout and the form of the response."""

STATUS_OF_CLOSE_CODE = {int(CloseCode.UNAUTHENTICATED): 401, int(CloseCode.FORBIDDEN): 403}
"""HTTP status for each close code that ends a stream because of its permission."""


class ResponseOptions(NamedTuple):
    answer_at: float
    """Time of the event loop at which the timeout expires."""

    unwrap: bool
    """Whether the body is the bare value of the only result task."""

    fail_status: int
    """Status of a response without a value, if `unwrap`."""

    preference: str | None
    """The preference that determined the timeout (RFC 7240); `None` if it was the query, or the default."""


def parse_response_options(request: Request) -> ResponseOptions:
    """Return the parameters of the response. The timeout starts now.

    Raises:
        BadParameter: A value is invalid.
    """
    timeout = parse_seconds(request, "timeout", DEFAULT_TIMEOUT)
    has_timeout = "timeout" in request.query_params
    preferred = None if has_timeout else parse_wait_preference(", ".join(request.headers.getlist("prefer")))
    return ResponseOptions(
        anyio.current_time() + (timeout if preferred is None else preferred.seconds),
        parse_flag(request, "unwrap"),
        parse_integer(request, "fail_status", DEFAULT_FAIL_STATUS, *FAIL_STATUS_BOUNDS),
        None if preferred is None else preferred.text,
    )


async def get_result(request: Request) -> Response:
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    key, response_options = parse_run_key(request), parse_response_options(request)
    options = replace(parse_watch_options(request, WATCH_PARAMETERS | RESPONSE_PARAMETERS), include_output=False)
    permission = await authorize_run(state["authorizer"], caller, key)
    subscription = await state["hub"].subscribe(key, permission.restrict_options(options))
    permission.bind(subscription, ignore_expiry)
    answer = await wait_for_outcome(request, subscription, key, response_options.answer_at)
    url = public_path(request, f"{run_path(key)}/result{raw_query(request)}")
    return build_response(answer, response_options, {"Location": url} if answer.outcome == "pending" else {})


async def wait_for_outcome(
    request: Request,
    subscription: Subscription,
    key: RunKey,
    answer_at: float,
    on_gone: Callable[[], None] | None = None,
) -> RunAnswer:
    """Wait until the outcome of a run is known, the timeout expires, or the client disconnects.

    Args:
        request: The request; its body has been read.
        subscription: Subscription to the run; closed at the end.
        key: The run.
        answer_at: Time of the event loop at which the timeout expires. After it, values that exist are still read
            (`VALUE_READ_SECONDS`).
        on_gone: Called if the client disconnects before the outcome is known.

    Raises:
        Unavailable: The subscription was closed, for example by a shutdown.
        AirflowRefused: The caller's permission was revoked.
    """
    state: State = request.scope["state"]
    hub, tracker = state["hub"], subscription.tracker
    assert tracker is not None, "the subscription is of one run"
    with closing(subscription):
        with watch_due_frames(subscription, request.receive) as frames:
            with state["scheduler"].counters["result"].count_waiting(), anyio.CancelScope(deadline=answer_at):
                await _drop_frames(frames)
            if not subscription.is_complete and hub.is_reading_values(key):
                with anyio.move_on_after(VALUE_READ_SECONDS):
                    await _drop_frames(frames)
            left = frames.is_client_gone
        answer = build_answer(key, tracker, hub.run_state(key))
    if left and on_gone is not None and not subscription.is_complete:
        on_gone()
    if subscription.closed is not None:
        raise _error_of_close(subscription.closed)
    return answer


def _error_of_close(closed: Close) -> StreamServerError:
    """Return the error for a `close` frame, which a stream would have got."""
    if closed.code in STATUS_OF_CLOSE_CODE:
        return AirflowRefused(closed.reason, STATUS_OF_CLOSE_CODE[closed.code])
    return Unavailable(f"{closed.reason}; retry")


async def _drop_frames(frames: DueFrames) -> None:
    """Wait until no frame can follow, or the client is gone. The tracker has the outcome."""
    while not frames.have_ended:
        await frames.take()


def build_response(answer: RunAnswer, options: ResponseOptions, headers: Mapping[str, str]) -> Response:
    """Return the response with the body that `options` requests.

    Raises:
        BadParameter: `unwrap`, and there are several result tasks.
        NoResult: `unwrap`, and there is a failure, or a value that cannot be sent.
    """
    pending = answer.outcome == "pending"
    unwrap = options.unwrap and not pending
    headers = {
        "Cache-Control": "no-store",
        "Vary": "Prefer",
        **({"Retry-After": RETRY_AFTER} if pending else {}),
        **({} if options.preference is None else {"Preference-Applied": options.preference}),
        **headers,
    }
    if unwrap and answer.outcome == "none":
        return Response(status_code=204, headers=headers)
    return Response(
        encode_bare_value(answer, options.fail_status) if unwrap else msgspec.json.encode(answer),
        status_code=202 if pending else 200,
        media_type="application/json",
        headers=headers,
    )

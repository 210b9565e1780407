"""`GET /api/v2/stream` and `GET /api/v2/dags/{dag_id}/stream`: transitions of many runs in one stream."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from stream_server.errors import BadParameter, Unavailable
from stream_server.http.caller import identify_caller
from stream_server.http.endpoints.run_stream import build_stream_response, unavailable_response
from stream_server.http.params import (
    CURSOR_PARAMETERS,
    parse_ping_interval,
    parse_resume_point,
    refuse_unknown_parameters,
)
from stream_server.http.permission import authorize_dag, authorize_firehose
from stream_server.http.state import State
from stream_server.hub.filters import FRAME_TYPES, Filter
from stream_server.journal.undecodable_rows import LoggedCauses
from stream_server.protocol.frames import NO_STATUS

log = logging.getLogger(__name__)

FILTER_PARAMETERS = ("dag_id", "run_id", "task_id", "state", "type", "tag")
"""Repeatable query parameters of the filter."""

STREAM_PARAMETERS = (*FILTER_PARAMETERS, *sorted(CURSOR_PARAMETERS), "ping")
"""Query parameters of a stream of many runs."""

MAX_FILTER_VALUES = 100
"""Maximum number of values of one parameter."""

_LOST_PLUS = re.compile(r" [0-9]{2}:?[0-9]{2}(?:_\w*)?\Z", re.ASCII)
"""End of a run's ID such as `manual__2026-11-29T10:00:00+00:00`, perhaps with a suffix, in which `+` became a space."""

_STATE_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
"""The form of all states so far, and of a column of 50 characters (`airflow.models.dagrun.DagRun.state`)."""

_unknown_states = LoggedCauses()

KNOWN_STATES = (
    "awaiting_input",
    "deferred",
    "failed",
    NO_STATUS,
    "queued",
    "removed",
    "restarting",
    "running",
    "scheduled",
    "skipped",
    "success",
    "up_for_reschedule",
    "up_for_retry",
    "upstream_failed",
)
"""States of runs and task instances (`airflow.utils.state`, 3.0 to 3.4), and the name of no state."""


async def stream_firehose(request: Request) -> Response:
    state: State = request.scope["state"]
    caller = await identify_caller(request)
    known = {*STREAM_PARAMETERS} - request.path_params.keys()
    refuse_unknown_parameters(request.query_params.keys(), frozenset(known))
    values_by_name = {name: request.query_params.getlist(name) for name in FILTER_PARAMETERS}
    if "dag_id" in request.path_params:
        values_by_name["dag_id"] = [request.path_params["dag_id"]]
    parse_ping_interval(request)
    _refuse_decoded_plus(values_by_name["run_id"])
    stream_filter, dag_id = await build_filter(state, values_by_name), request.path_params.get("dag_id", "")
    authorizer, readable = state["authorizer"], None
    try:
        if dag_id:
            permission = await authorize_dag(
                authorizer, caller, dag_id, output=stream_filter.wants_output, inputs=stream_filter.wants_inputs
            )
            stream_filter = permission.restrict_filter(stream_filter)
        else:
            permission = await authorize_firehose(authorizer, caller)
            readable = authorizer.readable_dags(caller)
        subscription = await state["hub"].subscribe_firehose(
            stream_filter, resume_from=parse_resume_point(request), permissions=readable
        )
    except Unavailable as error:
        return unavailable_response(request, error)
    permission.bind(subscription)
    return build_stream_response(request, subscription)


async def build_filter(state: State, values_by_name: Mapping[str, Sequence[str]]) -> Filter:
    """Return a filter. `tag` is resolved to the DAGs that have the tag now.

    Args:
        state: Application state.
        values_by_name: Values of the parameters `FILTER_PARAMETERS`.

    Raises:
        BadParameter: A value is not allowed.
    """
    for name, values in values_by_name.items():
        if len(values) > MAX_FILTER_VALUES:
            raise BadParameter(f"`{name}` must have at most {MAX_FILTER_VALUES} values, got {len(values)}")
        if "" in values:
            raise BadParameter(f"`{name}` must not be empty; omit it to match everything")
    _check_values("type", values_by_name.get("type", ()), FRAME_TYPES)
    _check_states(values_by_name.get("state", ()))
    dag_ids = frozenset(values_by_name.get("dag_id", ()))
    if tags := values_by_name.get("tag"):
        tagged = await state["run_store"].read_dag_ids_with_tags(tags)
        # An empty set means all DAGs. No DAG has an empty ID, so that this matches none if no DAG has the tag.
        dag_ids = (tagged & dag_ids if dag_ids else tagged) or frozenset({""})
    return Filter(
        dag_ids=dag_ids,
        run_ids=frozenset(values_by_name.get("run_id", ())),
        task_ids=frozenset(values_by_name.get("task_id", ())),
        states=frozenset(values_by_name.get("state", ())),
        types=frozenset(values_by_name.get("type", ())),
    )


def _refuse_decoded_plus(run_ids: Sequence[str]) -> None:
    """Raise for the ID of a run whose `+` was not percent-encoded: in a query, that is a space (WHATWG URL 5.1).

    Raises:
        BadParameter: An ID ends like a time whose offset lost its sign.
    """
    for run_id in run_ids:
        if _LOST_PLUS.search(run_id):
            raise BadParameter(
                f"`run_id` {run_id[:260]!r} has a space before its offset from UTC; encode `+` as %2B in a query"
            )


def _check_states(states: Sequence[str]) -> None:
    """Let states of a later Airflow pass, and log them once. They match nothing if Airflow has no such state.

    Raises:
        BadParameter: A value can't be a state.
    """
    for state in states:
        if _STATE_NAME.fullmatch(state) is None:
            raise BadParameter(f"`state` must be one of {', '.join(KNOWN_STATES)}, got {state[:40]!r}")
        if state not in KNOWN_STATES and _unknown_states.add_if_new(state):
            log.warning(
                "A filter names the state %s, which this version does not know; Airflow 3.0 to 3.4 does not have it",
                state,
                extra={"action": "unknown_state"},
            )


def _check_values(name: str, values: Collection[str], allowed: Collection[str]) -> None:
    for value in values:
        if value not in allowed:
            raise BadParameter(f"`{name}` must be one of {', '.join(allowed)}, got {value[:40]!r}")

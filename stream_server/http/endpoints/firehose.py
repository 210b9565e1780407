"""`GET /api/v2/stream` and `GET /api/v2/dags/{dag_id}/stream`: the transitions of many runs on one connection."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from stream_server.errors import BadParameter, Unavailable
from stream_server.http.caller import caller_of
from stream_server.http.delivery.streaming_body import Streaming
from stream_server.http.endpoints.run_stream import build_stream_response, unavailable_response
from stream_server.http.params import refuse_unknown, since
from stream_server.http.permission import permit_dag, permit_many
from stream_server.http.state import State
from stream_server.hub.firehose import FRAME_TYPES, Filter
from stream_server.protocol.frames import NO_STATUS

FILTER_PARAMETERS = ("dag_id", "run_id", "task_id", "state", "type", "tag")
"""What can be asked for; each may be given many times."""

MAX_FILTER_VALUES = 100
"""Values of one parameter."""

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
"""States of runs and task instances (`airflow.utils.state`, 3.0 to 3.3), and what stands for none."""


async def stream_firehose(request: Request) -> Response:
    """Answer the request."""
    state: State = request.scope["state"]
    caller = await caller_of(request)
    known = {*FILTER_PARAMETERS, "cursor"} - request.path_params.keys()
    refuse_unknown(request.query_params.keys(), frozenset(known))
    asked = {name: request.query_params.getlist(name) for name in FILTER_PARAMETERS}
    if "dag_id" in request.path_params:
        asked["dag_id"] = [request.path_params["dag_id"]]
    wanted, dag_id = await build_filter(state, asked), request.path_params.get("dag_id", "")
    authorizer, readable = state["authorizer"], None
    try:
        if dag_id:
            permission = await permit_dag(authorizer, caller, dag_id, output=wanted.wants_output)
            wanted = permission.may_hear(wanted)
        else:
            permission = await permit_many(authorizer, caller)
            readable = authorizer.readable_dags(caller)
    except Unavailable as error:
        return unavailable_response(request, error)
    watch = permission.guarded(state["hub"].subscribe_firehose(wanted, since=since(request), readable=readable))
    return build_stream_response(request, Streaming(watch, state["courier"]))


async def build_filter(state: State, asked: Mapping[str, Sequence[str]]) -> Filter:
    """Return the filter that is asked for; the tags of DAGs are those that they have now.

    Raises:
        BadParameter: Something is asked for that there can't be.
    """
    for name, values in asked.items():
        if len(values) > MAX_FILTER_VALUES:
            raise BadParameter(f"{name} is given {len(values)} times; {MAX_FILTER_VALUES} are the most")
        if "" in values:
            raise BadParameter(f"{name} is empty; give it a name, or leave it out to have all let through")
    _check_values("type", asked.get("type", ()), FRAME_TYPES)
    _check_values("state", asked.get("state", ()), KNOWN_STATES)
    dag_ids = frozenset(asked.get("dag_id", ()))
    if tags := asked.get("tag"):
        tagged = await state["runs"].read_dag_ids_with_tags(tags)
        # No DAG has an empty name: where none is tagged so, nothing is let through.
        dag_ids = (tagged & dag_ids if dag_ids else tagged) or frozenset({""})
    return Filter(
        dag_ids=dag_ids,
        run_ids=frozenset(asked.get("run_id", ())),
        task_ids=frozenset(asked.get("task_id", ())),
        states=frozenset(asked.get("state", ())),
        types=frozenset(asked.get("type", ())),
    )


def _check_values(name: str, values: Collection[str], known: Collection[str]) -> None:
    for value in values:
        if value not in known:
            raise BadParameter(f"{name}={value[:40]} is none of {', '.join(known)}")

"""Calling tools: a call triggers a run with the caller's rights, and its response ends with the outcome."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.authorizer import Caller
from stream_server.domain.dag_description import DagDescription
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadRequest, Draining, StreamServerError
from stream_server.http.caller import airflow_api_for
from stream_server.http.chat.answer_form import ACCEPT, ACTIONS, read_answer
from stream_server.http.chat.dags import find_tagged_dag, list_tagged_dags, refuse_paused_dag
from stream_server.http.chat.reading import read_frames_so_far
from stream_server.http.chat.run import AnsweringRun, close_on_error, trigger_run, watch_run
from stream_server.http.chat.translated_stream import MEDIA_TYPE
from stream_server.http.endpoints.human_input import send_answer
from stream_server.http.mcp.call_stream import CallStream
from stream_server.http.mcp.call_translator import Call, CallTranslator
from stream_server.http.mcp.messages import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError
from stream_server.http.mcp.references import (
    CallReference,
    build_run_uri,
    decode_reference,
    encode_reference,
    parse_run_uri,
)
from stream_server.http.mcp.requests import McpRequest
from stream_server.http.mcp.results import build_link, build_text
from stream_server.http.mcp.tasks import WORKING, RunFrames, build_task, collect_frames
from stream_server.http.mcp.tools import NO_TASK_TAG, TOOL_TAG, WAIT_TOOL, build_tool, name_tool
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest
from stream_server.journal.idempotency_keys import CANNOT_STORE
from stream_server.journal.tool_dags import read_dag_descriptions
from stream_server.protocol.bodies import DagItem
from stream_server.protocol.input_frames import Input
from stream_server.protocol.schema import Json

GRACE = 2.0
"""Seconds that a run continues after its client has disconnected, which cancels it from revision 2026-07-28 on."""

WAIT_TOOL_DEFINITION: Json = {
    "name": WAIT_TOOL,
    "title": "Wait for a DAG run",
    "description": (
        "Waits for the result of a run that another tool has started and that takes long. Takes the URI of the run"
        " from the result of that tool; there are no others."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {"run": {"type": "string", "description": "URI of the run, such as dag-run://dag/run"}},
        "required": ["run"],
        "additionalProperties": False,
    },
    "annotations": {"readOnlyHint": True, "openWorldHint": False},
}

PURPOSE = "call of MCP"
"""Separates these claims from those of idempotency keys."""

CANCELLED_CALL = "cancelled"
"""What is stored for a call whose client has cancelled it before the run existed; else it is the URI of the run."""

CANCELLATION_SECONDS = 60.0
"""How long that is stored: the call has been sent before."""


async def call_tool(request: Request, caller: Caller, wanted: McpRequest) -> Response | Json:
    """Return the response to `tools/call`: a stream, or a result that is known at once."""
    name, arguments = wanted.read_text("name"), wanted.params.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, f"`params.arguments` must be an object, got {type(arguments).__name__}")
    if wanted.is_modern and "requestState" in wanted.params:
        return await _continue_call(request, caller, wanted)
    if name == WAIT_TOOL:
        _refuse_task(wanted, name)
        return await _wait_for_run(request, caller, wanted, arguments)
    dag = await _find_tool(request, caller, name)
    refuse_paused_dag(dag)
    description = await _read_description(request, dag.dag_id)
    has_tasks = NO_TASK_TAG not in description.tags
    if not has_tasks:
        _refuse_task(wanted, name)
    as_task = has_tasks and (wanted.wants_tasks or wanted.is_old_task)
    has_schema = "outputSchema" in build_tool(description)
    # Revision 2025-11-25 cancels by a notification, later ones by a disconnect. A task needs no client.
    grace = GRACE if wanted.is_modern and not as_task else None
    triggered = await trigger_run(request, caller, dag.dag_id, arguments, None)
    if as_task:
        reference = CallReference(*triggered.key, has_schema=has_schema)
        task = build_task(encode_reference(reference), WORKING, None, is_modern=wanted.is_modern)
        return {"resultType": "task", **task} if wanted.is_modern else {"task": task}
    try:
        await _store_call(request, caller, wanted, triggered.key)
        run = await watch_run(request, caller, triggered.key, resume_from=triggered.resume_point, cancel_after=grace)
    except Draining:
        return interrupt_call(_build_call(triggered.key, wanted, has_schema=has_schema))
    except StreamServerError as error:
        # Without the URI, the agent would call again, and start a second run.
        return _build_unfinished(triggered.key, f"{error}. ", is_error=True)
    return stream_call(request, run, wanted, has_schema=has_schema)


async def cancel_call(request: Request, caller: Caller, session_id: str | None, request_id: Any) -> None:  # noqa: ANN401
    """Set the run of a call to failed, with the caller's rights."""
    state: State = request.scope["state"]
    if session_id is None or not isinstance(request_id, str | int):
        return
    found = parse_run_uri(await _claim_call(state, caller, session_id, request_id, CANCELLED_CALL))
    if found is not None:
        await airflow_api_for(request, caller).fail_run(found[0])


async def answer_elicitation(
    request: Request,
    caller: Caller,
    reference: CallReference,
    response: Any,  # noqa: ANN401 # any JSON value
) -> bool:
    """Pass the answer of a client to Airflow, with the caller's rights. Return whether the user has given one.

    A request that is not open any more needs no answer.

    Raises:
        RpcError: The answer has no option.
    """
    action = response.get("action") if isinstance(response, dict) else None
    if action != ACCEPT or reference.task_id is None:
        return False
    asks = next(
        (one for one in (await read_run(request, caller, reference.key)).requests if _fits(one, reference)), None
    )
    if asks is not None:
        try:
            answer = read_answer(response.get("content"), asks)
        except BadRequest as error:
            raise RpcError(INVALID_PARAMS, str(error)) from None
        airflow = airflow_api_for(request, caller)
        await send_answer(airflow, reference.key, (asks.task_id, asks.map_index, asks.iteration), answer)
    return True


async def read_run(request: Request, caller: Caller, key: RunKey) -> RunFrames:
    """Return a run as it is now."""
    run = await watch_run(request, caller, key)
    return collect_frames(wire.frame for wire in await read_frames_so_far(request, run))


def stream_call(
    request: Request,
    run: AnsweringRun,
    wanted: McpRequest,
    reference: CallReference | None = None,
    *,
    has_schema: bool = False,
) -> Response:
    """Return the stream of a call that begins, or that continues an earlier response."""
    state: State = request.scope["state"]
    has_schema = has_schema if reference is None else reference.has_schema
    with close_on_error(run):
        call = _build_call(run.key, wanted, reference, has_schema=has_schema)
        return CallStream(
            run,
            CallTranslator(call, None if reference is None else reference.asked_at),
            state["scheduler"],
            # The result of a task has no bound (2025-11-25, basic/utilities/tasks).
            max_seconds=None if call.task_id is not None else state["settings"].mcp_wait,
            unfinished=_build_unfinished(run.key, is_error=has_schema),
        )


def interrupt_call(call: Call) -> Response:
    """Return a response that the client continues at another server: this one stops."""
    translator = CallTranslator(call)
    return Response(translator.start() + translator.interrupt(), media_type=MEDIA_TYPE)


async def await_task(request: Request, caller: Caller, wanted: McpRequest, reference: CallReference) -> Response:
    """Return the stream that ends with the result of a task."""
    try:
        run = await watch_run(request, caller, reference.key)
    except Draining:
        return interrupt_call(_build_call(reference.key, wanted, has_schema=reference.has_schema))
    return stream_call(request, run, wanted, has_schema=reference.has_schema)


def _build_call(
    key: RunKey, wanted: McpRequest, reference: CallReference | None = None, *, has_schema: bool = False
) -> Call:
    progress = 0 if reference is None else reference.progress
    task_id = wanted.params["taskId"] if wanted.method == "tasks/result" else None
    return Call(key, wanted.id, wanted.progress_token, wanted.version, wanted.elicits, progress, has_schema, task_id)


async def _read_description(request: Request, dag_id: str) -> DagDescription:
    state: State = request.scope["state"]
    found = await read_dag_descriptions(state["run_store"], TOOL_TAG, [dag_id])
    return found[0] if found else DagDescription(dag_id, None, None, None, (), None)


def _build_unfinished(key: RunKey, reason: str = "", *, is_error: bool = False) -> Json:
    text = f"{reason}Run {key.run_id!r} continues. Call {WAIT_TOOL} with the run {build_run_uri(key)} to get its result"
    unfinished = build_text(text, is_error=is_error)
    unfinished["content"].append(build_link(key))
    return unfinished


async def _continue_call(request: Request, caller: Caller, wanted: McpRequest) -> Response | Json:
    """Go on with a call whose last response was `input_required`."""
    reference = decode_reference(wanted.params["requestState"], CallReference)
    if reference is None or wanted.params["name"] not in {WAIT_TOOL, name_tool(reference.dag_id)}:
        raise RpcError(INVALID_PARAMS, "`params.requestState` is not one of this tool")
    responses = wanted.params.get("inputResponses")
    response = responses.get(reference.task_id) if isinstance(responses, dict) else None
    if reference.task_id is not None and response is None:
        # Without an answer, the user is asked again.
        reference = msgspec.structs.replace(reference, asked_at=None, task_id=None)
    elif response is not None and (not isinstance(response, dict) or response.get("action") not in ACTIONS):
        raise RpcError(INVALID_PARAMS, f"`action` of `params.inputResponses` must be one of {', '.join(ACTIONS)}")
    if response is not None and not await answer_elicitation(request, caller, reference, response):
        text = f"The user has not answered. Run {reference.run_id!r} waits for an answer, which others may give"
        declined = build_text(text, is_error=True)
        declined["content"].append(build_link(reference.key))
        return declined
    is_waiting = wanted.params["name"] == WAIT_TOOL
    try:
        # A call that waits for the run of another one does not cancel it.
        run = await watch_run(request, caller, reference.key, cancel_after=None if is_waiting else GRACE)
    except Draining:
        return _build_unfinished(reference.key, is_error=True)
    return stream_call(request, run, wanted, reference)


def _refuse_task(wanted: McpRequest, name: str) -> None:
    """Raise for a call as a task of a tool that has none."""
    if wanted.is_old_task:
        raise RpcError(METHOD_NOT_FOUND, f"The tool {name!r} can't be called as a task; omit `params.task`")


async def _wait_for_run(request: Request, caller: Caller, wanted: McpRequest, arguments: Json) -> Response | Json:
    found = parse_run_uri(arguments.get("run"))
    if found is None:
        raise RpcError(INVALID_PARAMS, "`run` must be the URI of a run, such as dag-run://dag/run")
    try:
        run = await watch_run(request, caller, found[0])
    except Draining:
        return _build_unfinished(found[0], is_error=True)
    return stream_call(request, run, wanted)


async def _find_tool(request: Request, caller: Caller, name: str) -> DagItem:
    dag = await find_tagged_dag(request, caller, name, TOOL_TAG)
    if dag is None or name_tool(dag.dag_id) != name:
        found = await list_tagged_dags(request, caller, TOOL_TAG)
        dag = next((one for one in found if name_tool(one.dag_id) == name), None)
    if dag is None:
        text = f"There is no tool {name[:250]!r}: no DAG with the tag `{TOOL_TAG}` that you may read"
        raise RpcError(INVALID_PARAMS, text)
    return dag


async def _store_call(request: Request, caller: Caller, wanted: McpRequest, key: RunKey) -> None:
    """Store the run of a call, for a cancellation. If that has come already, set the run to failed."""
    if wanted.session_id is None:
        return
    stored = await _claim_call(request.scope["state"], caller, wanted.session_id, wanted.id, build_run_uri(key))
    if stored == CANCELLED_CALL:
        await airflow_api_for(request, caller).fail_run(key)


async def _claim_call(state: State, caller: Caller, session_id: str, request_id: str | int, value: str) -> str | None:
    """Return what is stored for a call, and store a value if there is nothing; `None` where nothing can be stored."""
    digest = compute_digest([PURPOSE, caller.headers, session_id, request_id])
    lifetime = CANCELLATION_SECONDS if value == CANCELLED_CALL else state["settings"].idempotency_ttl
    try:
        return (await state["idempotency_keys"].claim_run(digest, b"", value, lifetime)).run_id
    except CANNOT_STORE:
        return None


def _fits(asks: Input, reference: CallReference) -> bool:
    place = (reference.task_id, reference.map_index, reference.asked_at)
    return (asks.task_id, asks.map_index, asks.asked_at.isoformat()) == place

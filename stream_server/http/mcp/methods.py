"""The methods of the protocol that have a result at once."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server import __version__
from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, RunNotFound
from stream_server.http.caller import airflow_api_for
from stream_server.http.chat.dags import HIDDEN_STATUSES, list_tagged_dags
from stream_server.http.mcp.cancelled_tasks import release_cancellation, store_cancellation, was_cancelled
from stream_server.http.mcp.messages import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    RESOURCE_NOT_FOUND,
    RpcError,
)
from stream_server.http.mcp.references import (
    CallReference,
    Session,
    build_run_uri,
    decode_reference,
    encode_reference,
    parse_run_uri,
)
from stream_server.http.mcp.requests import (
    MODERN_VERSION,
    SESSION_VERSIONS,
    TASK_METHODS,
    TASKS_EXTENSION,
    McpRequest,
    can_ask_user,
)
from stream_server.http.mcp.results import JSON_TYPE, describe_withheld, read_values
from stream_server.http.mcp.subscriptions import listen
from stream_server.http.mcp.tasks import CANCELLED, build_current_task, build_task
from stream_server.http.mcp.tool_calls import (
    WAIT_TOOL_DEFINITION,
    answer_elicitation,
    await_task,
    call_tool,
    read_run,
)
from stream_server.http.mcp.tools import NO_TASK_TAG, TOOL_TAG, WAIT_TOOL, build_tool, name_tool
from stream_server.http.state import State
from stream_server.journal.tool_dags import read_dag_descriptions
from stream_server.protocol.frames import Failure, Result
from stream_server.protocol.schema import Json

LIST_TTL_MS = 10_000
"""How long clients may keep a list. New DAGs appear after that."""

MAX_ANSWERS = 10
"""Answers in one request. A task asks one question at a time."""

INSTRUCTIONS = (
    "Each tool runs an Apache Airflow DAG and returns its result as soon as that exists. If that takes long, the result"
    f" is a URI; pass it to {WAIT_TOOL}."
)
SERVER_INFO: Json = {"name": "stream-server", "title": "Airflow DAGs", "version": __version__}
TEMPLATES: list[Json] = [
    {
        "uriTemplate": "dag-run://{dag_id}/{run_id}",
        "name": "State of a DAG run",
        "description": "The state of the run and of its task instances, and its outcome.",
        "mimeType": JSON_TYPE,
    },
    {
        "uriTemplate": "dag-run://{dag_id}/{run_id}/result",
        "name": "Result of a DAG run",
        "description": "The whole result as JSON.",
        "mimeType": JSON_TYPE,
    },
]


async def handle_method(request: Request, caller: Caller, wanted: McpRequest) -> Response | Json:
    """Return the result of a method, or a response that streams it.

    Raises:
        RpcError: There is no such method, or its params are wrong.
        StreamServerError: Airflow refuses, or something is not there.
    """
    handler = _HANDLERS.get(wanted.method)
    if handler is None or (handler.is_modern is not None and handler.is_modern != wanted.is_modern):
        raise RpcError(METHOD_NOT_FOUND, f"There is no method {wanted.method[:100]!r}")
    if wanted.is_modern and wanted.method in TASK_METHODS and not wanted.wants_tasks:
        required: Json = {"requiredCapabilities": {"extensions": {TASKS_EXTENSION: {}}}}
        raise RpcError(MISSING_CAPABILITY, f"The client must declare the extension {TASKS_EXTENSION}", required)
    return await handler.handle(request, caller, wanted)


def build_session_id(wanted: McpRequest) -> str:
    """Return the id of the session that a request begins."""
    elicits = can_ask_user(wanted.params.get("capabilities"))
    return encode_reference(Session(_select_version(wanted), elicits, secrets.token_urlsafe(16)))


async def _initialize(_request: Request, _caller: Caller, wanted: McpRequest) -> Json:
    return {
        "protocolVersion": _select_version(wanted),
        "capabilities": {"tools": {}, "resources": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}},
        "serverInfo": SERVER_INFO,
        "instructions": INSTRUCTIONS,
    }


def _select_version(wanted: McpRequest) -> str:
    version = wanted.params.get("protocolVersion")
    return version if isinstance(version, str) and version in SESSION_VERSIONS else SESSION_VERSIONS[0]


async def _ping(_request: Request, _caller: Caller, _wanted: McpRequest) -> Json:
    return {}


async def _discover(_request: Request, _caller: Caller, _wanted: McpRequest) -> Json:
    return {
        "supportedVersions": [MODERN_VERSION],
        "capabilities": {"tools": {}, "resources": {"subscribe": True}, "extensions": {TASKS_EXTENSION: {}}},
        "instructions": INSTRUCTIONS,
        "ttlMs": LIST_TTL_MS,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": SERVER_INFO},
    }


async def _list_templates(_request: Request, _caller: Caller, wanted: McpRequest) -> Json:
    return {"resourceTemplates": TEMPLATES, **_describe_list(wanted)}


async def _list_resources(_request: Request, _caller: Caller, wanted: McpRequest) -> Json:
    """Return an empty list: there are too many runs to list them, and agents get URIs from results."""
    return {"resources": [], **_describe_list(wanted)}


def _describe_list(wanted: McpRequest) -> Json:
    if not wanted.is_modern:
        return {}
    return {"ttlMs": LIST_TTL_MS, "cacheScope": "private"}


async def _list_tools(request: Request, caller: Caller, wanted: McpRequest) -> Json:
    state: State = request.scope["state"]
    readable = [dag.dag_id for dag in await list_tagged_dags(request, caller, TOOL_TAG)]
    found = await read_dag_descriptions(state["run_store"], TOOL_TAG, readable)
    tools = [build_tool(dag) for dag in found]
    without_tasks = {name_tool(dag.dag_id) for dag in found if NO_TASK_TAG in dag.tags}
    if wanted.version == SESSION_VERSIONS[0]:
        for tool in tools:
            tool["execution"] = {"taskSupport": "forbidden" if tool["name"] in without_tasks else "optional"}
    return {"tools": [*tools, WAIT_TOOL_DEFINITION], **_describe_list(wanted)}


async def _read_resource(request: Request, caller: Caller, wanted: McpRequest) -> Json:
    uri = wanted.read_text("uri")
    missing = INVALID_PARAMS if wanted.is_modern else RESOURCE_NOT_FOUND
    found = parse_run_uri(uri)
    if found is None:
        raise RpcError(missing, "There is no such resource; URIs have the form dag-run://dag/run", {"uri": uri})
    key, is_result = found
    try:
        run = await read_run(request, caller, key)
    except (RunNotFound, AirflowRefused) as error:
        if error.status not in HIDDEN_STATUSES:
            raise
        raise RpcError(missing, f"There is no run {key.run_id!r} of a DAG {key.dag_id!r}", {"uri": uri}) from None
    body: Any
    if is_result:
        body = _read_result(key, run.outcome, missing, uri)
    else:
        body = {
            "run": None if run.snapshot is None else run.snapshot.run,
            "tasks": [] if run.snapshot is None else run.snapshot.tasks,
            "failure": run.outcome if isinstance(run.outcome, Failure) else None,
            "has_result": isinstance(run.outcome, Result),
            "result_uri": build_run_uri(key, "/result"),
        }
    content = {"uri": uri, "mimeType": JSON_TYPE, "text": msgspec.json.encode(body).decode()}
    return {"contents": [content], **_describe_list(wanted)} | ({"ttlMs": 0} if wanted.is_modern else {})


def _read_result(key: RunKey, outcome: Result | Failure | None, missing: int, uri: str) -> Any:  # noqa: ANN401
    """Return the value of a result, and where values are that are too large to be sent."""
    if not isinstance(outcome, Result):
        raise RpcError(missing, f"Run {key.run_id!r} has no result", {"uri": uri})
    if outcome.withheld:
        raise RpcError(missing, describe_withheld(key), {"uri": uri})
    if outcome.references:
        return {"values": read_values(outcome), "references": outcome.references}
    return read_values(outcome)


async def _get_task(request: Request, caller: Caller, wanted: McpRequest) -> Json:
    reference = _read_task_id(wanted)
    with _hide_runs(wanted):
        run = await read_run(request, caller, reference.key)
    is_failed = run.has_outcome and not isinstance(run.outcome, Result)
    is_cancelled = is_failed and await was_cancelled(request.scope["state"], reference.key, run.clear_number)
    return build_current_task(
        wanted.read_text("taskId"),
        reference,
        run,
        is_modern=wanted.is_modern,
        elicits=wanted.elicits,
        is_cancelled=is_cancelled,
    )


async def _await_task(request: Request, caller: Caller, wanted: McpRequest) -> Response:
    with _hide_runs(wanted):
        return await await_task(request, caller, wanted, _read_task_id(wanted))


async def _cancel_task(request: Request, caller: Caller, wanted: McpRequest) -> Json:
    reference = _read_task_id(wanted)
    with _hide_runs(wanted):
        run_state = await _cancel_run(request, caller, reference.key)
    if wanted.is_modern:
        return {}
    if run_state == "success":
        raise RpcError(INVALID_PARAMS, "The task is completed and can't be cancelled")
    return build_task(wanted.read_text("taskId"), CANCELLED, None, is_modern=False)


async def _cancel_run(request: Request, caller: Caller, key: RunKey) -> str:
    """Set the run of a task to failed, with the caller's rights, and return its state then."""
    state: State = request.scope["state"]
    airflow = airflow_api_for(request, caller)
    run = await read_run(request, caller, key)
    if run.has_outcome:
        return await airflow.fail_run(key)
    # Before the run fails: other clients may be notified of that at once.
    is_new = await store_cancellation(state, key, run.clear_number)
    try:
        run_state = await airflow.fail_run(key)
    except AirflowRefused:
        if is_new:
            await release_cancellation(state, key, run.clear_number)
        raise
    if is_new and run_state == "success":
        await release_cancellation(state, key, run.clear_number)
    return run_state


async def _update_task(request: Request, caller: Caller, wanted: McpRequest) -> Json:
    """Pass the answers of a client to Airflow. The key of an answer names the request; unknown ones are ignored."""
    key, responses = _read_task_id(wanted).key, wanted.params.get("inputResponses")
    if not isinstance(responses, dict) or len(responses) > MAX_ANSWERS:
        raise RpcError(INVALID_PARAMS, f"`params.inputResponses` must be an object with at most {MAX_ANSWERS} members")
    for name, response in responses.items():
        reference = decode_reference(name, CallReference)
        if reference is not None and reference.key == key:
            with _hide_runs(wanted):
                await answer_elicitation(request, caller, reference, response)
    return {}


def _read_task_id(wanted: McpRequest) -> CallReference:
    """Return the run of a task, and its tool. Whether the caller may see it is checked at each use."""
    reference = decode_reference(wanted.read_text("taskId"), CallReference)
    if reference is None:
        raise RpcError(INVALID_PARAMS, "`params.taskId` is not one of this server")
    return reference


@contextmanager
def _hide_runs(wanted: McpRequest) -> Iterator[None]:
    """Raise the same error for a run that does not exist, and for one that the caller may not see."""
    try:
        yield
    except (RunNotFound, AirflowRefused) as error:
        if error.status not in HIDDEN_STATUSES:
            raise
        raise RpcError(INVALID_PARAMS, f"There is no task {wanted.params['taskId']!r}") from None


class _Handler(NamedTuple):
    handle: Callable[[Request, Caller, McpRequest], Awaitable[Response | Json]]
    is_modern: bool | None = None
    """The only revision that has it; `None` for both."""


_HANDLERS = {
    "tools/call": _Handler(call_tool),
    "tools/list": _Handler(_list_tools),
    "resources/templates/list": _Handler(_list_templates),
    "resources/list": _Handler(_list_resources),
    "resources/read": _Handler(_read_resource),
    "tasks/get": _Handler(_get_task),
    "tasks/cancel": _Handler(_cancel_task),
    "tasks/result": _Handler(_await_task, is_modern=False),
    "tasks/update": _Handler(_update_task, is_modern=True),
    "subscriptions/listen": _Handler(listen, is_modern=True),
    "initialize": _Handler(_initialize, is_modern=False),
    "ping": _Handler(_ping, is_modern=False),
    "server/discover": _Handler(_discover, is_modern=True),
}

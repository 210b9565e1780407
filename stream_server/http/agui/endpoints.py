"""The endpoints of AG-UI: `POST …/ag-ui` runs the agent, `…/ag-ui/{thread_id}/connect` continues, `…/stop` cancels.

A DAG run may take several runs of the protocol: one ends with each question to a human. A disconnect does not cancel.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, BadRequest, RunNotFound
from stream_server.http.agui.capabilities import build_capabilities
from stream_server.http.agui.interrupts import identify_interrupt, read_payload
from stream_server.http.agui.requests import Message, RunInput, build_question, decode_run_input
from stream_server.http.agui.translator import AgUiTranslator
from stream_server.http.caller import airflow_api_for, refuse_foreign_origin
from stream_server.http.chat.caller import identify_chat_caller
from stream_server.http.chat.current_runs import find_current_run, identify_account, store_current_run
from stream_server.http.chat.dags import find_chat_dag, refuse_paused_dag
from stream_server.http.chat.open_requests import collect_open_requests
from stream_server.http.chat.reading import read_frames_so_far
from stream_server.http.chat.run import AnsweringRun, IdempotencyKey, close_on_error, trigger_run, watch_run
from stream_server.http.chat.translated_stream import TranslatedStream
from stream_server.http.endpoints.human_input import send_answer
from stream_server.http.params import read_body, refuse_unknown_parameters
from stream_server.http.state import State
from stream_server.http.triggering import TriggeredRun, compute_digest, find_claimed_run, name_run_in_errors
from stream_server.journal.idempotency_keys import CANNOT_STORE
from stream_server.protocol.bodies import Cancelled, DagItem
from stream_server.protocol.input_frames import Input

TRANSPORT = "ag_ui"
PURPOSE = "thread of AG-UI"
"""Separates the runs of threads from those of other conversations."""

RUN_PURPOSE = "run of AG-UI"
NOT_FOUND = 404
JSON = "application/json"


async def get_capabilities(request: Request) -> Response:
    """Return what the agent can do."""
    refuse_unknown_parameters(request.query_params.keys(), frozenset())
    async with identify_chat_caller(request) as caller:
        dag = await _find_dag(request, caller)
    return Response(msgspec.json.encode(build_capabilities(dag.dag_id, dag.description)), media_type=JSON)


async def run_agent(request: Request) -> Response:
    """Trigger a run for the last message, or answer the interrupts of the thread's run; and stream it."""
    _check_request(request)
    async with identify_chat_caller(request) as caller:
        wanted = decode_run_input(await read_body(request))
        dag = await _find_dag(request, caller)
        if wanted.resume:
            return await _answer_interrupts(request, caller, wanted)
        refuse_paused_dag(dag)
        return await _ask(request, caller, wanted)


async def connect_agent(request: Request) -> Response:
    """Stream the thread's run: only the text that the client's messages lack; 204 if the thread has no run."""
    _check_request(request)
    async with identify_chat_caller(request) as caller:
        wanted = decode_run_input(await read_body(request))
        thread_id = request.path_params["thread_id"]
        if wanted.thread_id != thread_id:
            raise BadRequest(f"`threadId` must be that of the path, {thread_id!r}, got {wanted.thread_id!r}")
        key = await _find_run(request, caller)
        if key is None:
            return Response(status_code=204)
        try:
            run = await watch_run(request, caller, key)
        except RunNotFound:
            return Response(status_code=204)
        return _stream(request, run, wanted)


async def stop_agent(request: Request) -> Response:
    """Set the thread's run to failed, with the caller's rights; 204 if there is none."""
    _check_request(request)
    async with identify_chat_caller(request) as caller:
        key = await _find_run(request, caller)
        if key is None:
            return Response(status_code=204)
        state = await airflow_api_for(request, caller).fail_run(key)
    cancelled = Cancelled(dag_id=key.dag_id, dag_run_id=key.run_id, state=state)
    return Response(msgspec.json.encode(cancelled), media_type=JSON)


def _check_request(request: Request) -> None:
    refuse_foreign_origin(request)
    refuse_unknown_parameters(request.query_params.keys(), frozenset())


async def _find_dag(request: Request, caller: Caller) -> DagItem:
    dag_id = request.path_params["dag_id"]
    dag = await find_chat_dag(request, caller, dag_id)
    if dag is None:
        raise AirflowRefused(f"There is no DAG {dag_id!r} with the tag `chat` that you may read", NOT_FOUND)
    return dag


async def _find_run(request: Request, caller: Caller, thread_id: str | None = None) -> RunKey | None:
    """Return the run of a thread. The caller must be able to read the DAG before they learn whether there is one."""
    state: State = request.scope["state"]
    dag_id = request.path_params["dag_id"]
    await state["authorizer"].check_dag(caller, dag_id)
    return await find_current_run(state, caller, dag_id, PURPOSE, thread_id or request.path_params["thread_id"])


async def _ask(request: Request, caller: Caller, wanted: RunInput) -> Response:
    state: State = request.scope["state"]
    triggered = await _trigger(request, caller, wanted)
    with name_run_in_errors(request, triggered.key):
        run = await watch_run(request, caller, triggered.key, resume_from=triggered.resume_point)
        with close_on_error(run):
            await store_current_run(state, caller, run.key, PURPOSE, wanted.thread_id)
            return _stream(request, run, wanted)


async def _trigger(request: Request, caller: Caller, wanted: RunInput) -> TriggeredRun:
    """Trigger a run, once for each thread and run id of a caller, where that can be stored."""
    state: State = request.scope["state"]
    dag_id, messages = request.path_params["dag_id"], wanted.read_messages()
    account = identify_account(state, caller)
    key = compute_digest([RUN_PURPOSE, account, wanted.thread_id, wanted.run_id]).hex()
    if messages and messages[-1].role != "user":
        # A repeated request has what the earlier response has sent.
        messages = await _drop_messages_of_run(state, dag_id, key, messages)
    conf = build_question(messages).conf
    try:
        return await trigger_run(request, caller, dag_id, conf, IdempotencyKey(key))
    except CANNOT_STORE:
        return await trigger_run(request, caller, dag_id, conf, None)


async def _drop_messages_of_run(state: State, dag_id: str, key: str, messages: list[Message]) -> list[Message]:
    """Return the messages without those of the run that an earlier request with the key has triggered."""
    try:
        run_id = await find_claimed_run(state, dag_id, key)
    except CANNOT_STORE:
        return messages
    return messages if run_id is None else [message for message in messages if not message.is_of_run(run_id)]


async def _answer_interrupts(request: Request, caller: Caller, wanted: RunInput) -> Response:
    """Pass the answers to Airflow, with the caller's rights, and continue. A cancelled interrupt stays open."""
    key = await _find_run(request, caller, wanted.thread_id)
    if key is None:
        raise BadRequest(f"Thread {wanted.thread_id!r} has no run that `resume` could continue; send a new question")
    airflow = airflow_api_for(request, caller)
    for asks in await _read_open_requests(request, caller, key):
        given = wanted.answers.get(identify_interrupt(asks))
        if given is not None and given.status == "resolved":
            answer = read_payload(given.payload, asks)
            await send_answer(airflow, key, (asks.task_id, asks.map_index, asks.iteration), answer)
    return _stream(request, await watch_run(request, caller, key), wanted)


async def _read_open_requests(request: Request, caller: Caller, key: RunKey) -> list[Input]:
    """Return what tasks ask now. A question that has its answer already, as in a repeated request, is none."""
    run = await watch_run(request, caller, key)
    return collect_open_requests([wire.frame for wire in await read_frames_so_far(request, run)])


def _stream(request: Request, run: AnsweringRun, wanted: RunInput) -> Response:
    state: State = request.scope["state"]
    with close_on_error(run):
        translator = AgUiTranslator(run.key, wanted)
        return TranslatedStream(run, translator, state["scheduler"], TRANSPORT, has_open_requests_only=True)

"""The endpoints of `DefaultChatTransport`: `POST …/chat`, `GET …/chat/{id}/stream`, and `POST …/chat/{id}/stop`.

As the AI SDK recommends, a disconnect does not cancel the run: the page may be reloaded.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowRefused, RunNotFound
from stream_server.http.ai_sdk.requests import build_question, decode_chat_request
from stream_server.http.ai_sdk.translator import UiMessageTranslator
from stream_server.http.caller import airflow_api_for, refuse_foreign_origin
from stream_server.http.chat.caller import identify_chat_caller
from stream_server.http.chat.current_runs import find_current_run, store_current_run
from stream_server.http.chat.dags import find_chat_dag, refuse_paused_dag
from stream_server.http.chat.run import AnsweringRun, IdempotencyKey, close_on_error, start_run, watch_run
from stream_server.http.chat.translated_stream import TranslatedStream
from stream_server.http.params import parse_choice, read_body, refuse_unknown_parameters
from stream_server.http.state import State
from stream_server.http.triggering import name_run_in_errors
from stream_server.protocol.bodies import Cancelled

TRANSPORT = "ai_sdk"
PURPOSE = "chat of the AI SDK"
"""Separates the runs of chats from those of other conversations."""

RESET_VALUES = ("part", "step")
"""Values of `reset`; the first is the default."""

HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
NOT_FOUND = 404


async def answer_chat(request: Request) -> Response:
    refuse_foreign_origin(request)
    resets_steps = _parse_reset(request)
    async with identify_chat_caller(request) as caller:
        return await _answer(request, caller, resets_steps=resets_steps)


async def _answer(request: Request, caller: Caller, *, resets_steps: bool) -> Response:
    state: State = request.scope["state"]
    wanted = decode_chat_request(await read_body(request))
    question = build_question(wanted.messages)
    dag_id = request.path_params["dag_id"]
    dag = await find_chat_dag(request, caller, dag_id)
    if dag is None:
        raise AirflowRefused(f"There is no DAG {dag_id!r} with the tag `chat` that you may read", NOT_FOUND)
    refuse_paused_dag(dag)
    key = request.headers.get("idempotency-key")
    run = await start_run(
        request, caller, dag_id, question.conf, None if key is None else IdempotencyKey(key), cancel_after=None
    )
    with close_on_error(run), name_run_in_errors(request, run.key):
        await store_current_run(state, caller, run.key, PURPOSE, wanted.id)
        return _stream(request, run, resets_steps=resets_steps)


async def resume_chat(request: Request) -> Response:
    """Stream the current answer from its start; 204 if no answer is in progress."""
    resets_steps = _parse_reset(request)
    async with identify_chat_caller(request) as caller:
        return await _resume(request, caller, resets_steps=resets_steps)


async def _resume(request: Request, caller: Caller, *, resets_steps: bool) -> Response:
    state: State = request.scope["state"]
    key = await _find_run(request, caller)
    if key is None:
        return Response(status_code=204)
    try:
        run = await watch_run(request, caller, key)
    except RunNotFound:
        return Response(status_code=204)
    watched = state["hub"].run_state(key)
    if run.subscription.is_complete or watched is None or watched.has_ended:
        run.subscription.close()
        return Response(status_code=204)
    with close_on_error(run):
        return _stream(request, run, resets_steps=resets_steps)


async def stop_chat(request: Request) -> Response:
    """Set the run of the current answer to failed, with the caller's rights; 204 if there is none."""
    refuse_foreign_origin(request)
    refuse_unknown_parameters(request.query_params.keys(), frozenset())
    async with identify_chat_caller(request) as caller:
        key = await _find_run(request, caller)
        if key is None:
            return Response(status_code=204)
        state = await airflow_api_for(request, caller).fail_run(key)
    cancelled = Cancelled(dag_id=key.dag_id, dag_run_id=key.run_id, state=state)
    return Response(msgspec.json.encode(cancelled), media_type="application/json")


async def _find_run(request: Request, caller: Caller) -> RunKey | None:
    """Return the run of a chat. The caller must be able to read the DAG before they learn whether there is one."""
    state: State = request.scope["state"]
    dag_id = request.path_params["dag_id"]
    await state["authorizer"].check_dag(caller, dag_id)
    return await find_current_run(state, caller, dag_id, PURPOSE, request.path_params["chat_id"])


def _parse_reset(request: Request) -> bool:
    """Whether a restarted text resets the step. It is read before there is a run, which an error would leave behind."""
    refuse_unknown_parameters(request.query_params.keys(), frozenset({"reset"}))
    return parse_choice(request, "reset", RESET_VALUES) == "step"


def _stream(request: Request, run: AnsweringRun, *, resets_steps: bool) -> Response:
    state: State = request.scope["state"]
    translator = UiMessageTranslator(run.key, resets_steps=resets_steps)
    return TranslatedStream(run, translator, state["scheduler"], TRANSPORT, HEADERS)

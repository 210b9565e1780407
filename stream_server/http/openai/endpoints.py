"""The endpoints: `GET /v1/models`, `GET /v1/models/{id}` and `POST /v1/chat/completions`."""

from __future__ import annotations

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.authorizer import Caller
from stream_server.http.caller import read_credential, refuse_foreign_origin
from stream_server.http.chat.answer import Failed, Finished
from stream_server.http.chat.caller import identify_chat_caller
from stream_server.http.chat.dags import answers_helper_calls, find_chat_dag, list_chat_dags, refuse_paused_dag
from stream_server.http.chat.reading import read_whole_answer
from stream_server.http.chat.run import AnsweringRun, IdempotencyKey, close_on_error, start_run
from stream_server.http.chat.translated_stream import TranslatedStream
from stream_server.http.openai.chunks import CompletionHead, build_error, build_model, build_usage
from stream_server.http.openai.error_responses import NO_RETRY
from stream_server.http.openai.helper_calls import answer_helper_task, find_helper_task
from stream_server.http.openai.requests import CompletionRequest, build_question, decode_completion_request
from stream_server.http.openai.translator import CompletionTranslator
from stream_server.http.params import read_body
from stream_server.http.state import State
from stream_server.http.triggering import compute_digest
from stream_server.protocol.schema import Json

TRANSPORT = "openai"
RETRY_COUNT_HEADER = "x-stainless-retry-count"
"""Header with which OpenAI's SDKs count how often they have sent a request before."""

OPEN_WEBUI_PREFIX = "x-openwebui-"
"""Prefix of headers that only Open WebUI sends."""

GRACE = 5.0
"""Seconds that a run continues after its client has disconnected: enough for an SDK to send its request again."""

NOT_FOUND = 404
HELPER_RUN_ID = "helper"


async def list_models(request: Request) -> Response:
    async with identify_chat_caller(request) as caller:
        dags = await list_chat_dags(request, caller)
    return respond({"object": "list", "data": [build_model(dag.dag_id) for dag in dags]})


async def get_model(request: Request) -> Response:
    model = request.path_params["model"]
    async with identify_chat_caller(request) as caller:
        dag = await find_chat_dag(request, caller, model)
    return refuse_model(model) if dag is None else respond(build_model(dag.dag_id))


async def complete_chat(request: Request) -> Response:
    refuse_foreign_origin(request)
    async with identify_chat_caller(request) as caller:
        return await _complete(request, caller)


async def _complete(request: Request, caller: Caller) -> Response:
    state: State = request.scope["state"]
    body = await read_body(request)
    wanted = decode_completion_request(body)
    dag = await find_chat_dag(request, caller, wanted.model)
    if dag is None:
        return refuse_model(wanted.model)
    task = find_helper_task(wanted, request.headers)
    if task is not None and not await answers_helper_calls(request, dag.dag_id):
        return _answer_locally(wanted, task)
    question = build_question(wanted.messages)
    refuse_paused_dag(dag)
    run = await start_run(request, caller, dag.dag_id, question.conf, find_key(request, body), cancel_after=GRACE)
    with close_on_error(run):
        head = CompletionHead.of_run(dag.dag_id, run.key.run_id)
        if not wanted.stream:
            return with_end(run, await _respond_with_answer(request, run, head))
        is_open_webui = any(name.startswith(OPEN_WEBUI_PREFIX) for name in request.headers)
        translator = CompletionTranslator(head, includes_usage=wanted.includes_usage, shows_status=is_open_webui)
        return TranslatedStream(run, translator, state["scheduler"], TRANSPORT)


def refuse_model(model: str) -> Response:
    text = f"There is no model {model[:250]!r}: no DAG with this ID and the tag `chat` that you may read"
    return respond(build_error(text, NOT_FOUND, "model_not_found"), status=NOT_FOUND)


def _answer_locally(wanted: CompletionRequest, task: str) -> Response:
    """Answer a request of a chat UI for itself. Those are never streamed."""
    head = CompletionHead.of_run(wanted.model, HELPER_RUN_ID)
    return respond(head.build_completion(answer_helper_task(task, wanted), build_usage(None)))


async def _respond_with_answer(request: Request, run: AnsweringRun, head: CompletionHead) -> Response:
    """Respond when the answer is complete, however long that takes."""
    text, end, thinking = await read_whole_answer(request, run, TRANSPORT)
    match end:
        case Failed():
            return respond(build_error(end.message, end.status, end.code), {**run.headers, **NO_RETRY}, end.status)
        case Finished():
            return respond(head.build_completion(text, build_usage(end.value), thinking), run.headers)
        case None:
            # Nothing receives this: the client has disconnected.
            return Response(status_code=499)


def with_end(run: AnsweringRun, response: Response) -> Response:
    """Return a response that is not streamed, with what follows its end."""
    if run.on_responded is not None:
        response.background = BackgroundTask(run.on_responded)
    return response


def find_key(request: Request, body: bytes) -> IdempotencyKey | None:
    """Return the idempotency key of a request.

    SDKs of OpenAI send a request again after an error of the connection, when a run may exist. They send no key then,
    but count. So an equal request is a retry if its count is not 0, and the earlier one is in progress or has just
    ended.
    """
    if (key := request.headers.get("idempotency-key")) is not None:
        return IdempotencyKey(key)
    retries = request.headers.get(RETRY_COUNT_HEADER)
    if retries is None:
        return None
    digest = compute_digest([TRANSPORT, read_credential(request), body.decode("latin-1")]).hex()
    return IdempotencyKey(digest, is_retry=retries != "0", is_derived=True)


def respond(body: Json, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(body),
        status,
        media_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )

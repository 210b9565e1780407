"""The endpoints of the Responses API: `POST /v1/responses`, `GET /v1/responses/{id}` and `POST …/{id}/cancel`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import TIMEOUT_SECONDS, run_path
from stream_server.auth.authorizer import Caller
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadRequest, RequestTooLarge, RunNotFound
from stream_server.http.caller import airflow_api_for, refuse_foreign_origin
from stream_server.http.chat.answer import Failed, Finished
from stream_server.http.chat.caller import identify_chat_caller
from stream_server.http.chat.dags import answers_helper_calls, find_chat_dag, refuse_paused_dag
from stream_server.http.chat.question import Question, Turn
from stream_server.http.chat.reading import AnswerState, read_answer_so_far, read_whole_answer
from stream_server.http.chat.run import AnsweringRun, close_on_error, start_run, watch_run
from stream_server.http.chat.translated_stream import TranslatedStream
from stream_server.http.openai.chunks import build_error, build_usage
from stream_server.http.openai.endpoints import (
    GRACE,
    HELPER_RUN_ID,
    TRANSPORT,
    find_key,
    refuse_model,
    respond,
    with_end,
)
from stream_server.http.openai.error_responses import NO_RETRY
from stream_server.http.openai.helper_calls import answer_helper_task, find_helper_task
from stream_server.http.openai.requests import (
    CompletionRequest,
    ResponseRequest,
    build_question,
    decode_response_request,
)
from stream_server.http.openai.response_objects import ResponseHead, decode_response_id
from stream_server.http.openai.response_translator import ResponseTranslator, build_response_error
from stream_server.http.params import parse_flag, parse_integer, read_body
from stream_server.http.state import State

NOT_FOUND = 404
MAX_SEQUENCE_NUMBER = 999_999_999


class _RunConf(msgspec.Struct):
    conf: dict[str, Any] | None = None


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Exchange(msgspec.Struct):
    """The `conf` of an earlier question."""

    message: str
    history: list[_Turn] = []


async def create_response(request: Request) -> Response:
    refuse_foreign_origin(request)
    async with identify_chat_caller(request) as caller:
        return await _create(request, caller)


async def get_response(request: Request) -> Response:
    # Before there is a subscription, which an error would leave open.
    is_streamed = parse_flag(request, "stream")
    resumes = is_streamed and "starting_after" in request.query_params
    after = parse_integer(request, "starting_after", -1, 0, MAX_SEQUENCE_NUMBER) if resumes else -1
    async with identify_chat_caller(request) as caller:
        key = decode_response_id(request.path_params["response_id"])
        if key is None or await find_chat_dag(request, caller, key.dag_id) is None:
            return _refuse_id(request)
        try:
            run = await watch_run(request, caller, key)
        except RunNotFound:
            return _refuse_id(request)
    with close_on_error(run):
        head = ResponseHead(key, _find_creation_time(request, key))
        if not is_streamed:
            return _build_response(head, await read_answer_so_far(request, run), run.headers)
        return _stream(request, run, ResponseTranslator(head, after))


async def cancel_response(request: Request) -> Response:
    refuse_foreign_origin(request)
    async with identify_chat_caller(request) as caller:
        key = decode_response_id(request.path_params["response_id"])
        if key is None or await find_chat_dag(request, caller, key.dag_id) is None:
            return _refuse_id(request)
        state = await airflow_api_for(request, caller).fail_run(key)
    head = ResponseHead(key, int(time.time()), is_background=True)
    return respond(head.build_response("completed" if state == "success" else "cancelled"))


async def _create(request: Request, caller: Caller) -> Response:
    body = await read_body(request)
    wanted = decode_response_request(body)
    dag = await find_chat_dag(request, caller, wanted.model)
    if dag is None:
        return refuse_model(wanted.model)
    as_completion = CompletionRequest(wanted.model, wanted.messages, wanted.stream)
    task = find_helper_task(as_completion, request.headers)
    if task is not None and not await answers_helper_calls(request, dag.dag_id):
        local = ResponseHead(RunKey(dag.dag_id, HELPER_RUN_ID), int(time.time()))
        return respond(
            local.build_response("completed", answer_helper_task(task, as_completion), usage=build_usage(None))
        )
    question = build_question(wanted.messages)
    if wanted.previous_response_id is not None:
        earlier = await _read_history(request, caller, wanted.previous_response_id)
        question = _join(earlier, question, has_instructions=bool(wanted.instructions))
        _refuse_large(request, question)
    refuse_paused_dag(dag)
    # A background response continues without its client.
    grace = None if wanted.background else GRACE
    run = await start_run(request, caller, dag.dag_id, question.conf, find_key(request, body), cancel_after=grace)
    with close_on_error(run):
        return await _respond(request, run, wanted)


async def _respond(request: Request, run: AnsweringRun, wanted: ResponseRequest) -> Response:
    head = ResponseHead(
        run.key, int(time.time()), bool(wanted.background), wanted.metadata, wanted.previous_response_id
    )
    if wanted.stream:
        return _stream(request, run, ResponseTranslator(head))
    if wanted.background:
        run.subscription.close()
        return with_end(run, respond(head.build_response("queued"), run.headers))
    return with_end(run, _build_response(head, await read_whole_answer(request, run, TRANSPORT), run.headers))


def _stream(request: Request, run: AnsweringRun, translator: ResponseTranslator) -> Response:
    state: State = request.scope["state"]
    return TranslatedStream(run, translator, state["scheduler"], TRANSPORT)


def _build_response(head: ResponseHead, answer: AnswerState, headers: dict[str, str]) -> Response:
    match answer.end:
        case Failed() if not answer.end.is_final:
            error = build_error(answer.end.message, answer.end.status, answer.end.code)
            return respond(error, {**headers, **NO_RETRY}, answer.end.status)
        case Failed():
            return respond(head.build_response("failed", answer.text, error=build_response_error(answer.end)), headers)
        case Finished():
            usage = build_usage(answer.end.value)
            complete = head.build_response("completed", answer.text, thinking=answer.thinking, usage=usage)
            return respond(complete, headers)
        case None:
            return respond(head.build_response("in_progress", answer.text or None), headers)


async def _read_history(request: Request, caller: Caller, response_id: str) -> list[Turn]:
    """Return the conversation up to and with an earlier response.

    Raises:
        BadRequest: There is no such response, or the caller may not read it, or it is not complete.
    """
    key = decode_response_id(response_id)
    if key is None or await find_chat_dag(request, caller, key.dag_id) is None:
        raise BadRequest("`previous_response_id` is not the id of a response that you may read")
    found = await airflow_api_for(request, caller).get(_RunConf, run_path(key), TIMEOUT_SECONDS)
    try:
        conf = msgspec.convert(None if found.body is None else found.body.conf, _Exchange)
        run = await watch_run(request, caller, key)
    except (msgspec.ValidationError, RunNotFound):
        raise BadRequest("`previous_response_id` is not the id of a response that you may read") from None
    answer = await read_answer_so_far(request, run)
    if not isinstance(answer.end, Finished):
        raise BadRequest("The response of `previous_response_id` is not complete")
    earlier = [Turn(turn.role, turn.content) for turn in conf.history]
    return [*earlier, Turn("user", conf.message), Turn("assistant", answer.text)]


def _join(earlier: list[Turn], question: Question, *, has_instructions: bool) -> Question:
    """Return a question with the conversation before it. New instructions replace those of the earlier response."""
    instructions, history = question.history[:has_instructions], question.history[has_instructions:]
    if has_instructions and earlier and earlier[0].role == "system":
        earlier = earlier[1:]
    return Question(question.message, [*instructions, *earlier, *history])


def _refuse_large(request: Request, question: Question) -> None:
    """Raise an error for a conversation that has grown beyond what one request may have."""
    state: State = request.scope["state"]
    max_bytes = state["settings"].max_body_bytes
    if len(msgspec.json.encode(question.conf)) > max_bytes:
        raise RequestTooLarge(f"The conversation up to this question has more than {max_bytes} bytes")


def _find_creation_time(request: Request, key: RunKey) -> int:
    state: State = request.scope["state"]
    run = state["hub"].run_state(key)
    queued_at = None if run is None else run.info.queued_at
    return int(time.time() if queued_at is None else queued_at.timestamp())


def _refuse_id(request: Request) -> Response:
    text = f"There is no response {request.path_params['response_id'][:250]!r} that you may read"
    return respond(build_error(text, NOT_FOUND, "response_not_found"), status=NOT_FOUND)

"""`POST …/taskInstances/{task_id}/input`: answer a request for human input, with the caller's rights."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stream_server.auth.airflow_api import AirflowApi
from stream_server.domain.human_input import RequestKey
from stream_server.domain.run_state import RunKey
from stream_server.errors import BadRequest
from stream_server.http.caller import airflow_api_for, identify_caller, refuse_foreign_origin
from stream_server.http.params import parse_integer, parse_query, parse_run_key, read_body, refuse_unknown_parameters
from stream_server.protocol.bodies import InputAnswer, InputReceipt
from stream_server.protocol.schema import INVALID_JSON

JSON = "application/json"

NOT_MAPPED, MAX_MAP_INDEX = -1, 999_999_999

_decoder = msgspec.json.Decoder(InputAnswer)


async def answer_request(request: Request) -> Response:
    refuse_foreign_origin(request)
    refuse_unknown_parameters(request.query_params.keys(), frozenset({"map_index", "iteration"}))
    airflow = airflow_api_for(request, await identify_caller(request))
    key, task_id = parse_run_key(request), request.path_params["task_id"]
    map_index = NOT_MAPPED
    if parse_query(request).get("map_index", str(NOT_MAPPED)) != str(NOT_MAPPED):
        map_index = parse_integer(request, "map_index", 0, NOT_MAPPED, MAX_MAP_INDEX)
    iteration = None
    if "iteration" in parse_query(request):
        iteration = parse_integer(request, "iteration", 0, 0, MAX_MAP_INDEX)
    answer = _parse_answer(await read_body(request))
    receipt = await send_answer(airflow, key, (task_id, map_index, iteration), answer)
    return Response(msgspec.json.encode(receipt), media_type=JSON)


async def send_answer(airflow: AirflowApi, key: RunKey, instance: RequestKey, answer: InputAnswer) -> InputReceipt:
    """Pass an answer to Airflow, and return what was written; errors as for `AirflowApi.answer_request`."""
    written = await airflow.answer_request(key, instance, answer.as_airflow_body())
    task_id, map_index, iteration = instance
    return InputReceipt(
        dag_id=key.dag_id,
        dag_run_id=key.run_id,
        task_id=task_id,
        map_index=map_index,
        iteration=iteration,
        answered_at=written.responded_at,
        by=written.responded_by,
        chosen_options=written.chosen_options,
        params_input=written.params_input,
    )


def _parse_answer(body: bytes) -> InputAnswer:
    try:
        return _decoder.decode(body)
    except INVALID_JSON as error:
        raise BadRequest(
            f'The body must be JSON such as {{"chosen_options":["Approve"],"params_input":{{}}}}: {error}'
        ) from None

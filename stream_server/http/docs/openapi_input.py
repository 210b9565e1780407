"""The operation that answers a request for human input, in the OpenAPI document. Pure."""

from __future__ import annotations

from stream_server.http.docs.parameters import SECURITY_SCHEMES, build_parameters
from stream_server.http.docs.responses import JSON_TYPE, body_content
from stream_server.protocol import examples
from stream_server.protocol.bodies import InputAnswer, InputReceipt
from stream_server.protocol.schema import Json, description_of, reference_to


def build_answer_operation(path: str, problem_responses: Json) -> Json:
    """Return the operation.

    Args:
        path: Its path template.
        problem_responses: Its error responses.
    """
    answer = {"chosen_options": ["Approve"], "params_input": {"reason": "fine"}, "asked_at": examples.ASKED_AT}
    return {
        "operationId": "answerInput",
        "summary": "Answer a request for human input, with the caller's rights",
        "description": (
            "The answer is passed to Airflow. 409: the request is not open any more. 403: the caller may not answer it."
            " 404: the task instance does not exist, or has not asked. 422: the answer does not fit the request."
        ),
        "security": [{name: []} for name in SECURITY_SCHEMES],
        "parameters": build_parameters(path, ("map_index", "iteration")),
        "requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": reference_to(InputAnswer), "example": answer}},
        },
        "responses": {
            "200": {"description": description_of(InputReceipt), "content": {JSON_TYPE: body_content(InputReceipt)}},
            **problem_responses,
        },
    }

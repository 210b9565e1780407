"""The description of what the pages ask for beside streams, as OpenAPI has it. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stream_server import errors
from stream_server.http.docs.parameters import build_parameters
from stream_server.protocol.bodies import DagList, RunList, Session, Structure
from stream_server.protocol.schema import Json, description_of

GRAPH = "/api/v2/dags/{dag_id}/dagRuns/{run_id}/graph"
RUN_LIST = "/api/v2/stream/runs"
DAG_LIST = "/api/v2/stream/dags"
SESSION = "/api/v2/stream/session"

LIST_BODIES: tuple[type[msgspec.Struct], ...] = (RunList, DagList, Structure, Session)
"""What is answered."""

_AIRFLOW_ERRORS = (errors.AirflowUrlMissing, errors.AirflowNotResponding, errors.AirflowTimeout)
_READ_REFUSAL_STATUSES = (401, 403, 404)
_SIGN_IN_REFUSAL_STATUSES = (400, 401, 403, 422)
"""Statuses with which Airflow refuses."""

_SIGN_IN_SCHEMA: Json = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"username": {"type": "string"}, "password": {"type": "string", "format": "password"}},
            "required": ["username", "password"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"token": {"type": "string", "maxLength": 4096}},
            "required": ["token"],
            "additionalProperties": False,
        },
    ]
}


def build_list_paths(
    problems: Callable[..., Json], shown: Callable[[type[msgspec.Struct]], Json], readers: list[Json]
) -> Json:
    """Return the operations by path.

    Args:
        problems: Describes what may be wrong, by the classes of errors, beside what may be wrong with every request.
        shown: Describes an answer, with an example.
        readers: How callers say who they are.
    """

    def told(kind: type[msgspec.Struct]) -> Json:
        return {"200": {"description": description_of(kind), "content": {"application/json": shown(kind)}}}

    return {
        GRAPH: {
            "get": {
                "operationId": "getRunGraph",
                "summary": "The DAG of a run: its tasks, their groups and their order",
                "security": readers,
                "parameters": build_parameters(GRAPH),
                "responses": {
                    **told(Structure),
                    **problems(errors.RunNotFound, errors.BadParameter, refused=_READ_REFUSAL_STATUSES),
                },
            }
        },
        RUN_LIST: {
            "get": {
                "operationId": "listRuns",
                "summary": "The youngest runs, and from where on to follow what happens to them",
                "security": readers,
                "parameters": build_parameters(RUN_LIST, ("limit", "dag_id")),
                "responses": {**told(RunList), **problems(errors.BadParameter, refused=_READ_REFUSAL_STATUSES)},
            }
        },
        DAG_LIST: {
            "get": {
                "operationId": "listDags",
                "summary": "The DAGs that bear a tag",
                "security": readers,
                "parameters": build_parameters(DAG_LIST, ("tag",), required="tag"),
                "responses": {**told(DagList), **problems(errors.BadParameter, refused=_READ_REFUSAL_STATUSES)},
            }
        },
        SESSION: {
            "get": {
                "operationId": "getSession",
                "summary": "What a page needs to know before anybody has signed in",
                "responses": {**told(Session), **problems()},
            },
            "post": {
                "operationId": "signIn",
                "summary": "Sign in to Airflow: the answer sets the cookie that Airflow's own login sets",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _SIGN_IN_SCHEMA}}},
                "responses": {
                    "204": {
                        "description": "Signed in",
                        "headers": {
                            "Set-Cookie": {"schema": {"type": "string"}, "description": "HttpOnly, SameSite=Lax."}
                        },
                    },
                    **problems(
                        errors.BadRequest, errors.RequestTooLarge, *_AIRFLOW_ERRORS, refused=_SIGN_IN_REFUSAL_STATUSES
                    ),
                },
            },
            "delete": {
                "operationId": "signOut",
                "summary": "Sign out: the cookie goes, and Airflow revokes the token where it can",
                "responses": {
                    "204": {"description": "Signed out"},
                    **problems(*_AIRFLOW_ERRORS),
                },
            },
        },
    }

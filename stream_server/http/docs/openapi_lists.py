"""OpenAPI paths of the lists and the session, which the web pages use beside streams. Pure."""

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
"""Response bodies."""

_AIRFLOW_ERRORS = (errors.AirflowUrlMissing, errors.AirflowNotResponding, errors.AirflowTimeout)
_READ_REFUSAL_STATUSES = (401, 403, 404)
_SIGN_IN_REFUSAL_STATUSES = (400, 401, 403, 422)
"""Statuses with which Airflow refuses requests."""

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
        problems: Builds error responses of the given error classes and of those common to all requests.
        shown: Builds the content of a response, with an example.
        readers: Security requirements.
    """

    def success(kind: type[msgspec.Struct]) -> Json:
        return {"200": {"description": description_of(kind), "content": {"application/json": shown(kind)}}}

    return {
        GRAPH: {
            "get": {
                "operationId": "getRunGraph",
                "summary": "Get the graph of a run's DAG: tasks, task groups and edges",
                "security": readers,
                "parameters": build_parameters(GRAPH),
                "responses": {
                    **success(Structure),
                    **problems(errors.RunNotFound, errors.BadParameter, refused=_READ_REFUSAL_STATUSES),
                },
            }
        },
        RUN_LIST: {
            "get": {
                "operationId": "listRuns",
                "summary": "List the latest runs, with a cursor from which to stream their changes",
                "security": readers,
                "parameters": _describe_single(build_parameters(RUN_LIST, ("limit", "dag_id"))),
                "responses": {**success(RunList), **problems(errors.BadParameter, refused=_READ_REFUSAL_STATUSES)},
            }
        },
        DAG_LIST: {
            "get": {
                "operationId": "listDags",
                "summary": "List the DAGs that have a tag",
                "security": readers,
                "parameters": _describe_single(build_parameters(DAG_LIST, ("tag",), required="tag")),
                "responses": {**success(DagList), **problems(errors.BadParameter, refused=_READ_REFUSAL_STATUSES)},
            }
        },
        SESSION: {
            "get": {
                "operationId": "getSession",
                "summary": "Get what the web pages need before sign-in",
                "responses": {**success(Session), **problems()},
            },
            "post": {
                "operationId": "signIn",
                "summary": "Sign in to Airflow; the response sets the cookie that Airflow's login sets",
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
                "summary": "Sign out; the response deletes the cookie, and Airflow revokes the token if it can",
                "responses": {
                    "204": {"description": "Signed out"},
                    **problems(*_AIRFLOW_ERRORS),
                },
            },
        },
    }


def _describe_single(parameters: list[Json]) -> list[Json]:
    """Return parameters that other endpoints accept repeatedly, as those of a list."""
    return [
        {**one, "schema": one["schema"].get("items", one["schema"]), "description": one["description"].split("; ")[0]}
        for one in parameters
    ]

"""What all transports read from a request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from stream_server.auth import Authorizer
from stream_server.errors import BadParameter, ForeignOrigin
from stream_server.hub import Hub
from stream_server.outcome import Question
from stream_server.run_state import RunKey
from stream_server.settings import Settings
from stream_server.tail import Tail

_PARAMETERS = frozenset({"result", "until"})


class State(TypedDict):
    """What the application's lifespan gives to every request."""

    settings: Settings
    hub: Hub
    tail: Tail
    authorizer: Authorizer


def run_key(connection: HTTPConnection) -> RunKey:
    """Return the run that the path names. Starlette has decoded it."""
    return RunKey(connection.path_params["dag_id"], connection.path_params["run_id"])


def question(connection: HTTPConnection) -> Question:
    """Return what the query asks.

    Raises:
        BadParameter: A parameter is unknown, or its value is wrong.
    """
    query = connection.query_params
    _refuse_unknown(query.keys())
    until = query.get("until", "result")
    if until not in ("result", "run"):
        raise BadParameter(f"until={until[:40]} is neither 'result' nor 'run'")
    results = query.getlist("result")
    if any(not task_id for task_id in results):
        raise BadParameter("result= needs the name of a task; leave it out to get the DAG's own result")
    return Question(results=tuple(dict.fromkeys(results)), until="run" if until == "run" else "result")


def refuse_foreign_origin(connection: HTTPConnection) -> None:
    """Refuse what a page of another origin asks for; browsers keep only WebSockets from being read without our consent.

    Programs that are no browsers send no `Origin` (RFC 6455 section 10.2).

    Raises:
        ForeignOrigin: The origin is neither ours nor among those that were allowed.
    """
    state: State = connection.scope["state"]
    origin = connection.headers.get("origin")
    allowed = state["settings"].cors_origins
    if origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != connection.headers.get("host"):
        raise ForeignOrigin(f"Pages of {origin[:100]} may not read streams here; see STREAM_SERVER_CORS_ORIGINS")


def _refuse_unknown(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - _PARAMETERS)
    if unknown:
        raise BadParameter(
            f"There is no parameter {unknown[0][:40]!r} here; known are {', '.join(sorted(_PARAMETERS))}"
        )

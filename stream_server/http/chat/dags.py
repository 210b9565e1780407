"""The DAGs that answer questions, for callers that may read them."""

from __future__ import annotations

from starlette.requests import Request

from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowRefused, BadRequest
from stream_server.http.state import State
from stream_server.hub.filters import Resource
from stream_server.journal.run_lists import read_tagged_dags
from stream_server.protocol.bodies import DagItem

CHAT_TAG = "chat"
"""Tag of the DAGs that answer questions."""

HELPER_TAG = "chat-tasks"
"""Tag of the DAGs that also get the questions of a chat UI itself, such as for a title."""

HIDDEN_STATUSES = (403, 404)


async def list_chat_dags(request: Request, caller: Caller) -> list[DagItem]:
    """Return the DAGs that answer questions and that a caller may read."""
    return await list_tagged_dags(request, caller, CHAT_TAG)


async def list_tagged_dags(request: Request, caller: Caller, tag: str) -> list[DagItem]:
    """Return the DAGs with a tag that a caller may read."""
    state: State = request.scope["state"]
    await state["authorizer"].check_dags(caller)
    readable = state["authorizer"].readable_dags(caller)
    found = await read_tagged_dags(state["run_store"], tag)
    if readable is None:
        return found
    allowed = await readable.filter_readable({Resource(item.dag_id) for item in found})
    return [item for item in found if Resource(item.dag_id) in allowed]


async def find_chat_dag(request: Request, caller: Caller, dag_id: str) -> DagItem | None:
    """Return a DAG that answers questions; `None` if there is none of that name, or the caller may not read it.

    Raises:
        AirflowRefused: Airflow does not accept the caller's credential.
    """
    return await find_tagged_dag(request, caller, dag_id, CHAT_TAG)


async def find_tagged_dag(request: Request, caller: Caller, dag_id: str, tag: str) -> DagItem | None:
    """Return a DAG with a tag; result and errors as for `find_chat_dag`."""
    state: State = request.scope["state"]
    try:
        await state["authorizer"].check_dag(caller, dag_id)
    except AirflowRefused as error:
        if error.status in HIDDEN_STATUSES:
            return None
        raise
    return next((dag for dag in await read_tagged_dags(state["run_store"], tag) if dag.dag_id == dag_id), None)


def refuse_paused_dag(dag: DagItem) -> None:
    """Raise an error for a DAG whose runs would not start.

    Raises:
        BadRequest: The DAG is paused.
    """
    if dag.is_paused:
        raise BadRequest(f"DAG {dag.dag_id!r} is paused, so that its runs don't start; unpause it in Airflow")


async def answers_helper_calls(request: Request, dag_id: str) -> bool:
    """Whether a DAG also gets the questions of a chat UI itself."""
    state: State = request.scope["state"]
    return any(dag.dag_id == dag_id for dag in await read_tagged_dags(state["run_store"], HELPER_TAG))

"""The caller of a chat client, which may have an API key of this server in place of a token of Airflow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from stream_server.auth.authorizer import Caller
from stream_server.errors import AirflowRefused, Unauthenticated
from stream_server.http.caller import identify_caller
from stream_server.http.state import State


@asynccontextmanager
async def identify_chat_caller(request: Request) -> AsyncIterator[Caller]:
    """Yield the caller. A token of an API key that Airflow refuses in the context is not used again.

    Raises:
        AirflowError: Airflow does not accept the account of the API key.
    """
    state: State = request.scope["state"]
    caller = await state["api_keys"].resolve(await identify_caller(request))
    try:
        yield caller
    except AirflowRefused as error:
        if error.status == Unauthenticated.status:
            state["api_keys"].forget(caller)
        raise

"""Protected-resource metadata (RFC 9728): where clients get tokens that Airflow accepts, if that is configured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stream_server.errors import AirflowRefused, StreamServerError
from stream_server.http.state import State

METADATA = "/.well-known/oauth-protected-resource"

UNAUTHORIZED, NOT_FOUND = 401, 404


async def get_resource_metadata(request: Request) -> Response:
    """Answer with the authorization servers, which a client may read without a credential."""
    state: State = request.scope["state"]
    servers = state["settings"].mcp_authorization_servers
    if not servers:
        raise HTTPException(NOT_FOUND)
    return JSONResponse(
        {
            "resource": f"{_build_base_url(request)}/mcp",
            "resource_name": "Airflow DAGs",
            "authorization_servers": list(servers),
            "bearer_methods_supported": ["header"],
        }
    )


@contextmanager
def name_authorization_servers(request: Request) -> Iterator[None]:
    """Add the address of the metadata to an error with status 401 (RFC 9728 section 5.1)."""
    try:
        yield
    except StreamServerError as error:
        state: State = request.scope["state"]
        if error.status == UNAUTHORIZED and state["settings"].mcp_authorization_servers:
            challenge = f'Bearer resource_metadata="{_build_base_url(request)}{METADATA}/mcp"'
            error.headers = {**error.headers, "WWW-Authenticate": challenge}
            if isinstance(error, AirflowRefused):
                error.challenge = challenge
        raise


def _build_base_url(request: Request) -> str:
    """Return the address of this server as the client has it, with the prefix of the proxy."""
    state: State = request.scope["state"]
    return f"{request.url.scheme}://{request.url.netloc}{state['settings'].url_prefix}"

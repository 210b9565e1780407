"""Serving the descriptions of this server; each is made once, when it is first asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stream_server.http.docs import asyncapi, openapi
from stream_server.http.params import has_etag
from stream_server.protocol.schema import Json, build_frames_document


class Description(NamedTuple):
    """A description as it is sent."""

    body: bytes
    etag: str
    """Its entity tag (RFC 9110 section 8.8.3)."""


def routes() -> list[Route]:
    """Return the routes of all descriptions."""
    return [
        Route(path, partial(_describe, make, media_type))
        for path, make, media_type in (
            ("/openapi.json", openapi.document, openapi.JSON),
            ("/asyncapi.json", asyncapi.document, openapi.JSON),
            ("/schema/frames.json", build_frames_document, openapi.SCHEMA),
        )
    ]


@cache
def _description(make: Callable[[], Json]) -> Description:
    body = msgspec.json.encode(make())
    return Description(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


async def _describe(make: Callable[[], Json], media_type: str, request: Request) -> Response:
    """Answer with a description, unless the client has it."""
    description = _description(make)
    headers = {"ETag": description.etag, "Cache-Control": "no-cache"}
    if has_etag(request.headers.getlist("if-none-match"), description.etag):
        return Response(status_code=304, headers=headers)
    return Response(description.body, headers=headers, media_type=media_type)

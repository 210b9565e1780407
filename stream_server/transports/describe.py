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

from stream_server.schema import Json, frames_document
from stream_server.transports import asyncapi, openapi


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
            ("/schema/frames.json", frames_document, openapi.SCHEMA),
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


def has_etag(lists: list[str], etag: str) -> bool:
    """Tell whether an entity tag, or any, is among those of `If-None-Match` (RFC 9110 section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tags in lists for tag in tags.split(",")}
    return bool(tags & {etag, "*"})

"""Routes of the OpenAPI, AsyncAPI and JSON Schema documents. Each is rendered once, on the first request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stream_server.http.docs import asyncapi, openapi, responses
from stream_server.http.params import matches_etag
from stream_server.protocol.schema import Json, build_frames_document


class Document(NamedTuple):
    body: bytes
    etag: str
    """Entity tag (RFC 9110 section 8.8.3)."""


def document_routes() -> list[Route]:
    return [
        Route(path, partial(_serve_document, build, media_type))
        for path, build, media_type in (
            ("/openapi.json", openapi.build_openapi, responses.JSON_TYPE),
            ("/asyncapi.json", asyncapi.build_asyncapi, responses.JSON_TYPE),
            ("/schema/frames.json", build_frames_document, responses.SCHEMA_TYPE),
        )
    ]


_documents: dict[Callable[[], Json], Document] = {}
_rendering = Lock()


def _render_document(build: Callable[[], Json]) -> Document:
    with _rendering:
        document = _documents.get(build)
        if document is None:
            body = msgspec.json.encode(build())
            document = _documents[build] = Document(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return document


async def _serve_document(build: Callable[[], Json], media_type: str, request: Request) -> Response:
    document = _documents.get(build)
    if document is None:
        # It takes some 100 ms, in which the event loop must go on.
        document = await asyncio.to_thread(_render_document, build)
    headers = {"ETag": document.etag, "Cache-Control": "no-cache"}
    if matches_etag(request.headers.getlist("if-none-match"), document.etag):
        return Response(status_code=304, headers=headers)
    return Response(document.body, headers=headers, media_type=media_type)

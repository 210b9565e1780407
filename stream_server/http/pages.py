"""The run page and the chat page as static files, precompressed, with a strict content policy."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stream_server.errors import PagesMissing
from stream_server.http.params import matches_etag, parse_quality_values

log = logging.getLogger(__name__)

INDEX_FILE = "index.html"
PAGE_PATHS = ("/", "/chat", "/runs/{dag_id}/{run_id}")
"""Where there is a page."""

BUILD_DIRECTORY = Path(__file__).parents[1] / "web"
"""Where the build hook puts the built pages (`hatch_build.py`)."""

HASHED_PREFIX = "assets/"
"""Folder of the files whose names change with their content."""

ENCODINGS = {"br": ".br", "gzip": ".gz"}
"""Content codings (RFC 9110 section 8.4.1), the best first, and the suffixes of the files that were made with them."""

MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""By suffix: what the machine knows of media types is not ours to rely on."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; frame-ancestors 'self';"
    " img-src 'self'; script-src 'self'; style-src 'self'"
)
"""What a page may do (Content Security Policy Level 3): nothing inline, nothing from elsewhere, nothing evaluated."""

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # Addresses name DAGs and runs.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Asset(NamedTuple):
    """A file, as it is sent."""

    media_type: str
    cache_control: str
    bodies: Mapping[str, bytes]
    """By content coding; `identity` is always there."""

    digest: str
    """Of the body without a coding."""


def page_routes() -> list[Route]:
    """Return the routes of all pages, and of the files that they are made of."""
    assets = load_assets(BUILD_DIRECTORY)
    if INDEX_FILE not in assets:
        log.warning("The pages were not built into this installation; `make pages` does so in a checkout")
        return [Route(path, _raise_missing, include_in_schema=False) for path in PAGE_PATHS]
    files = {f"/{name}": asset for name, asset in assets.items() if name != INDEX_FILE} | dict.fromkeys(
        PAGE_PATHS, assets[INDEX_FILE]
    )
    return [Route(path, partial(_send_asset, asset), include_in_schema=False) for path, asset in files.items()]


def load_assets(folder: Path) -> dict[str, Asset]:
    """Read all files below a folder, by path: `assets/index-4c1f0be2.js`. There are none where it is missing."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.*")) if path.is_file()}
    return {name: _load_asset(name, path) for name, path in files.items() if path.suffix not in ENCODINGS.values()}


def _load_asset(name: str, path: Path) -> Asset:
    body = path.read_bytes()
    coded = {coding: path.with_name(f"{path.name}{suffix}") for coding, suffix in ENCODINGS.items()}
    return Asset(
        MEDIA_TYPES[path.suffix],
        "public, max-age=31536000, immutable" if name.startswith(HASHED_PREFIX) else "no-cache",
        {**{coding: file.read_bytes() for coding, file in coded.items() if file.exists()}, "identity": body},
        hashlib.sha256(body).hexdigest()[:32],
    )


async def _send_asset(asset: Asset, request: Request) -> Response:
    """Answer with a file in the coding that the client understands, unless it has it."""
    wanted = parse_quality_values(", ".join(request.headers.getlist("accept-encoding")))
    coding = next((one for one in asset.bodies if wanted.get(one, wanted.get("*", 0.0)) > 0), "identity")
    etag = f'"{asset.digest}-{coding}"'
    headers = {**HEADERS, "ETag": etag, "Cache-Control": asset.cache_control, "Vary": "Accept-Encoding"}
    if matches_etag(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return Response(asset.bodies[coding], headers=headers, media_type=asset.media_type)


async def _raise_missing(request: Request) -> Response:
    raise PagesMissing("The pages were not built into this installation; streams work without them")

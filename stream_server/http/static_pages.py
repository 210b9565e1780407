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
"""Paths of the pages, which are one HTML file."""

BUILD_DIRECTORY = Path(__file__).parents[1] / "web"
"""Directory of the built pages (`hatch_build.py`)."""

HASHED_PREFIX = "assets/"
"""Directory of files with a content hash in their names, which can be cached for ever."""

ENCODINGS = {"br": ".br", "gzip": ".gz"}
"""Suffixes of precompressed files by content coding (RFC 9110 section 8.4.1), the best first."""

MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
"""By suffix. `mimetypes` depends on the machine's configuration."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; connect-src 'self'; form-action 'none'; frame-ancestors 'self';"
    " img-src 'self'; script-src 'self'; style-src 'self'"
)
"""Content Security Policy Level 3: nothing inline, nothing of other origins, no `eval`."""

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # URLs contain the IDs of DAGs and runs.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Asset(NamedTuple):
    media_type: str
    cache_control: str
    bodies: Mapping[str, bytes]
    """By content coding; always with `identity`."""

    digest: str
    """Of the uncompressed body."""


def page_routes(url_prefix: str = "") -> list[Route]:
    """Return the routes of the pages and of their files.

    Args:
        url_prefix: What precedes paths in the URLs of browsers.
    """
    assets = load_assets(BUILD_DIRECTORY)
    if url_prefix and INDEX_FILE in assets:
        assets[INDEX_FILE] = _prefix_urls(assets[INDEX_FILE], url_prefix)
    if INDEX_FILE not in assets:
        log.warning("This installation has no pages; `make pages` builds them in a checkout")
        return [Route(path, _raise_missing, include_in_schema=False) for path in PAGE_PATHS]
    files = {f"/{name}": asset for name, asset in assets.items() if name != INDEX_FILE} | dict.fromkeys(
        PAGE_PATHS, assets[INDEX_FILE]
    )
    return [Route(path, partial(_send_asset, asset), include_in_schema=False) for path, asset in files.items()]


def load_assets(folder: Path) -> dict[str, Asset]:
    """Read all files below a directory, by path such as `assets/index-4c1f0be2.js`. None if it does not exist."""
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


def _prefix_urls(page: Asset, url_prefix: str) -> Asset:
    """Return the HTML file with the prefix before its URLs, and in the `meta` element that its scripts read."""
    body = page.bodies["identity"].replace(b'="/', f'="{url_prefix}/'.encode())
    body = body.replace(b'name="url-prefix" content=""', f'name="url-prefix" content="{url_prefix}"'.encode())
    return page._replace(bodies={"identity": body}, digest=hashlib.sha256(body).hexdigest()[:32])


async def _send_asset(asset: Asset, request: Request) -> Response:
    """Respond with a file in the best coding that the client accepts, or with 304."""
    qualities = parse_quality_values(", ".join(request.headers.getlist("accept-encoding")))
    coding = next((name for name in asset.bodies if qualities.get(name, qualities.get("*", 0.0)) > 0), "identity")
    etag = f'"{asset.digest}-{coding}"'
    headers = {**HEADERS, "ETag": etag, "Cache-Control": asset.cache_control, "Vary": "Accept-Encoding"}
    if matches_etag(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return Response(asset.bodies[coding], headers=headers, media_type=asset.media_type)


async def _raise_missing(request: Request) -> Response:
    raise PagesMissing("The pages were not built into this installation; streams work without them")

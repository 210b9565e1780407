"""An HTTP server of static files, an origin of its own for browsers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(SimpleHTTPRequestHandler):
    """Also finds modules without their suffix, as some packages import them."""

    def translate_path(self, path: str) -> str:
        found = super().translate_path(path)
        return found if Path(found).exists() else f"{found}.js"

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serve_directory(directory: Path) -> Iterator[str]:
    """Serve the files of a directory; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=directory))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

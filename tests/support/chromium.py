"""One Chromium for all browser tests of a session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.async_api import Browser, async_playwright

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
"""Options of Chromium. Without the last three, it sends requests to its vendor's servers at every start."""

STOP_SECONDS = 20.0


@contextmanager
def running_chromium(program: str) -> Iterator[str]:
    """Run Chromium; yield the address for `connect_to_chromium`.

    Args:
        program: Path of Chromium.
    """
    with TemporaryDirectory() as directory:
        config = Path(directory) / "chromium.json"
        config.write_text(json.dumps({"executablePath": program, "args": QUIET, "host": "127.0.0.1"}))
        command = [sys.executable, "-m", "playwright", "launch-server", "--browser=chromium", f"--config={config}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip()
                assert address.startswith("ws://"), f"Chromium does not start: {address}{process.stdout.read()}"
                yield address
            finally:
                # The group: the module has the server as a child. The server ends Chromium.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(STOP_SECONDS)


@asynccontextmanager
async def connect_to_chromium(address: str) -> AsyncIterator[Browser]:
    """Yield the running Chromium. Its contexts share nothing with those of other tests, and are closed at the end."""
    async with async_playwright() as playwright, await playwright.chromium.connect(address) as browser:
        yield browser

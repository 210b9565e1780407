"""Open WebUI as a child process, in an environment of its own.

The environment leaves out what Open WebUI needs for models on the same machine (`overrides.txt` beside the pins).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from matrix.environments import build_environment
from stream_server.cli.demo.ports import LOOPBACK, choose_port
from stream_server.cli.demo.processes import ChildProcess, log_path, wait_until
from stream_server.cli.demo.progress import SilentReporter
from stream_server.cli.demo.server import server_environment

PINS = Path(__file__).resolve().parents[1] / "open_webui" / "constraints" / "open-webui.txt"
START_SECONDS = 180.0


@asynccontextmanager
async def open_webui(directory: Path, base_url: str, key: str) -> AsyncIterator[str]:
    """Run Open WebUI with one connection; yields its URL.

    Args:
        directory: For its data and its log.
        base_url: The base URL of OpenAI's API.
        key: The key of the connection.
    """
    python = await asyncio.to_thread(build_environment, "open-webui", PINS)
    port = choose_port(None, "Open WebUI")
    settings = {
        "DATA_DIR": str(directory),
        "OPENAI_API_BASE_URL": base_url,
        "OPENAI_API_KEY": key,
        "ENABLE_FORWARD_USER_INFO_HEADERS": "true",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "secret of a test",
        # Nothing may be downloaded.
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_OLLAMA_API": "false",
        "RAG_EMBEDDING_ENGINE": "openai",
        "AUDIO_STT_ENGINE": "openai",
        "ANONYMIZED_TELEMETRY": "false",
    }
    command = [str(python.with_name("open-webui")), "serve", "--host", LOOPBACK, "--port", str(port)]
    log = log_path(directory, "open-webui")
    environment = {**server_environment(), **settings, "PYTHONDONTWRITEBYTECODE": ""}
    environment.pop("PYTHONPATH", None)
    child = ChildProcess("open-webui", command, log=log, environment=environment)
    url = f"http://{LOOPBACK}:{port}"
    child.start()
    try:
        await asyncio.to_thread(
            wait_until, lambda: _is_up(url), within=START_SECONDS, waiting_for=child, progress=SilentReporter()
        )
        yield url
    finally:
        await asyncio.to_thread(child.stop)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False

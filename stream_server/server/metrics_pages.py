"""The text of `/metrics`, which takes some milliseconds to render, for any number of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.server.metric_families import MetricFamily, choose_media_type, encode_families

MIN_INTERVAL_SECONDS = 0.05
"""Time between two renderings in one format. Requests that come in between wait, and share one."""


class MetricsPages:
    """Renders metrics in each format, at most every `MIN_INTERVAL_SECONDS`.

    Args:
        loop: The event loop.
        collect: Returns the metrics.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, collect: Callable[[], Awaitable[list[MetricFamily]]]) -> None:
        self._loop = loop
        self._collect = collect
        self._tasks = TaskSet("rendering of metrics")
        self._waiting: dict[str, asyncio.Task[tuple[bytes, str]]] = {}
        self._rendered_at: dict[str, float] = {}

    async def read(self, accept: str) -> tuple[bytes, str]:
        """Return metrics that were collected after this call, and their media type.

        Args:
            accept: The header `Accept`.
        """
        media_type = choose_media_type(accept)
        task = self._waiting.get(media_type)
        if task is None:
            task = self._waiting[media_type] = self._tasks.start(self._render(media_type))
        return await asyncio.shield(task)

    async def close(self) -> None:
        await self._tasks.aclose()

    async def _render(self, media_type: str) -> tuple[bytes, str]:
        rendered_at = self._rendered_at.get(media_type, float("-inf"))
        await asyncio.sleep(max(0.0, rendered_at + MIN_INTERVAL_SECONDS - self._loop.time()))
        # Requests from now on get what is collected later.
        del self._waiting[media_type]
        self._rendered_at[media_type] = self._loop.time()
        return encode_families(await self._collect(), media_type)

"""The response to a call of a tool: a stream of messages that ends with the result, or when it has waited long."""

from __future__ import annotations

import time

from typing_extensions import override

from stream_server.http.chat.run import AnsweringRun
from stream_server.http.chat.translated_stream import TranslatedStream
from stream_server.http.delivery.due_frames import DueFrames
from stream_server.http.delivery.scheduler import WriteScheduler
from stream_server.http.mcp.call_translator import CallTranslator
from stream_server.protocol.schema import Json

TRANSPORT = "mcp"


class CallStream(TranslatedStream):
    """A stream that ends early if the run takes long.

    Args:
        run: The run. Its subscription is closed at the end.
        translator: The translator.
        scheduler: For intervals and counters.
        max_seconds: Seconds after which the call gets `unfinished`; `None` for no bound.
        unfinished: The result of a call whose run continues.
    """

    def __init__(
        self,
        run: AnsweringRun,
        translator: CallTranslator,
        scheduler: WriteScheduler,
        *,
        max_seconds: float | None,
        unfinished: Json,
    ) -> None:
        super().__init__(run, translator, scheduler, TRANSPORT, has_open_requests_only=True)
        self._calls, self._unfinished = translator, unfinished
        self._ends_at = None if max_seconds is None else time.monotonic() + max_seconds

    @override
    async def _take(self, frames: DueFrames, seconds: float) -> bytes:
        if self._ends_at is None:
            return await super()._take(frames, seconds)
        left = self._ends_at - time.monotonic()
        if left <= 0 and not self._calls.awaits_input:
            return self._calls.expire(self._unfinished)
        return await super()._take(frames, min(seconds, left) if left > 0 else seconds)

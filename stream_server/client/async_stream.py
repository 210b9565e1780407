"""Streams for asyncio: the shell around `stream_state` for `AsyncClient`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from stream_server.client.display import build_mime_bundle
from stream_server.client.errors import ConnectionLost
from stream_server.client.frames import StreamFrame
from stream_server.client.http_transport import AsyncTransport
from stream_server.client.outcomes import Outcome
from stream_server.client.run_view import RunView
from stream_server.client.shown_run import ShownRun
from stream_server.client.stream_state import StreamState
from stream_server.client.tokens import AsyncTokens

if TYPE_CHECKING:
    from stream_server.client.async_client import AsyncClient
    from stream_server.client.async_run import AsyncRun


class AsyncFrameStream(AsyncIterator[StreamFrame]):
    """An iterator of frames. It reconnects and resumes; leaving the context, or `close`, closes the connection."""

    def __init__(self, transport: AsyncTransport, tokens: AsyncTokens, state: StreamState) -> None:
        self._transport = transport
        self._tokens = tokens
        self._state = state
        self._frames = self._receive_frames()

    @property
    def cursor(self) -> str | None:
        """Where the stream continues after the frames so far; `None` before the first cursor."""
        return self._state.cursor

    async def close(self) -> None:
        """Close the connection. The run continues."""
        await self._frames.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamFrame:
        try:
            return await anext(self._frames)
        except asyncio.CancelledError:
            # It has ended the generator: without another one, the stream would seem to be complete.
            self._state.record_interruption(time.monotonic())
            self._frames = self._receive_frames()
            raise

    async def _receive_frames(self) -> AsyncGenerator[StreamFrame]:
        state = self._state
        state.start(time.monotonic())
        while not state.is_over:
            try:
                await self._authenticate()
                async with self._transport.stream(state.next_request(), state.credential.token) as (response, parts):
                    state.record_response(response)
                    if response.is_success:
                        while not state.is_connection_over and (part := await anext(parts, None)) is not None:
                            for frame in state.receive(part):
                                yield frame
                        state.record_end_of_body(time.monotonic())
            except ConnectionLost as lost:
                state.record_loss(lost, time.monotonic())
            if not state.is_over:
                await asyncio.sleep(state.next_wait(time.monotonic()))

    async def _authenticate(self) -> None:
        credential = self._state.credential
        if credential.needs_renewal:
            credential.replace(await self._tokens.renew(credential.token))
        elif credential.token is None:
            credential.token = await self._tokens.get()


class AsyncRunStream(AsyncFrameStream):
    """The frames of one run, up to its `end`.

    Args:
        client: The client.
        transport: Sends the requests.
        tokens: The token.
        state: The stream.
        has_display: Whether the progress is shown.
    """

    def __init__(
        self,
        client: AsyncClient,
        transport: AsyncTransport,
        tokens: AsyncTokens,
        state: StreamState,
        *,
        has_display: bool,
    ) -> None:
        super().__init__(transport, tokens, state)
        self._client = client
        self._shown = ShownRun(has_display=has_display)

    @property
    def view(self) -> RunView:
        """What is known of the run from the frames so far."""
        return self._shown.view

    @property
    def run(self) -> AsyncRun:
        """The run, after the first frame.

        Raises:
            LookupError: No frame has arrived yet.
        """
        return self._client.get_run(*self._shown.require_run(self._state))

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; `None` before the end of the stream."""
        return self.view.outcome

    async def __anext__(self) -> StreamFrame:
        try:
            frame = await super().__anext__()
        except Exception:  # also the end
            self._shown.close()
            raise
        self._shown.record(frame)
        return frame

    async def texts(self) -> AsyncIterator[str]:
        """Yield the whole text that the run has emitted, each time that it has changed: also if it was retracted."""
        text = ""
        async for frame in self:
            before, text = text, self._shown.text_after(frame, text)
            if text != before:
                yield text

    async def wait(self) -> Outcome:
        """Read the rest of the stream, and return the outcome, which may be a failure.

        A stream that was resumed after its outcome was sent asks the server for it.
        """
        async for _ in self:
            pass
        outcome, options = self._shown.require_outcome(), self._state.options
        if options is None or not self._shown.lacks_values:
            return outcome
        return await self._client.wait(
            outcome.dag_id,
            outcome.run_id,
            results=options.results,
            until=options.until,
            confirm=options.confirm,
        )

    async def result(self) -> Any:
        """Read the rest of the stream, and return the value of the only result task.

        Raises:
            RunFailed: It is certain that there will be no result.
            NoResult: There is none, or several.
        """
        return (await self.wait()).value

    async def watch(self) -> Outcome:
        """Read the rest of the stream, show it meanwhile, and return the outcome, which may be a failure."""
        self._shown.open_display()
        return await self.wait()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return build_mime_bundle(self.view)

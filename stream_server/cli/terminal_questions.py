"""Questions of tasks beside a live table: the table stops while the user answers."""

from __future__ import annotations

import asyncio
from types import TracebackType

from rich.live import Live
from typing_extensions import Self

from stream_server.cli.answer import Prompter, SendAnswer, read_terminal_line
from stream_server.domain.human_input import WAITING_STATES
from stream_server.protocol.frames import AnyFrame, TaskTransition
from stream_server.protocol.input_frames import Input, InputAnswered


class TerminalQuestions:
    """Follows the frames of a run, and puts its questions to the user.

    Args:
        live: The table.
        send: Sends an answer.
    """

    def __init__(self, live: Live, send: SendAnswer) -> None:
        self._live = live
        self._prompter = Prompter(read_terminal_line, self._write, send)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A cancelled task ends after the table has: it must not start the table again, which hides the cursor.
        self._is_closed = True
        if self._tasks:
            # The end of the run is shown below the prompt that waits.
            self._write("")
            self._live.start()
        for task in self._tasks:
            task.cancel()

    def update(self, frame: AnyFrame) -> None:
        """Apply a frame. A question is put to the user while later frames are applied."""
        if isinstance(frame, Input):
            if self._prompter.open(frame):
                task = asyncio.get_running_loop().create_task(self._ask(frame))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        elif isinstance(frame, InputAnswered) or (
            isinstance(frame, TaskTransition) and frame.state not in WAITING_STATES
        ):
            self._prompter.close(frame)

    async def _ask(self, request: Input) -> None:
        self._live.stop()
        try:
            await self._prompter.ask(request)
        finally:
            if len(self._tasks) == 1 and not self._is_closed:
                self._live.start()

    def _write(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

"""A command of the program in a terminal of its own, with a user that reads and types."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from support.streams import DEADLINE

START_SECONDS = 60.0

WIDTH = "200"
"""Columns: enough for each text in one line."""


class Terminal:
    """What the program shows, and the user's keyboard.

    Args:
        reader: The user's end of the terminal.
        process: The program.
    """

    def __init__(self, reader: int, process: asyncio.subprocess.Process) -> None:
        self._reader, self._process = reader, process
        self._seen = 0
        self._changed = asyncio.Event()
        self._is_over = False
        self.output = ""
        asyncio.get_running_loop().add_reader(reader, self._read)

    @classmethod
    @asynccontextmanager
    async def running(cls, *arguments: str, environment: Mapping[str, str]) -> AsyncIterator[Terminal]:
        """Run a command with standard input, output and error at the terminal."""
        reader, writer = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "stream_server", *arguments),
            stdin=writer,
            stdout=writer,
            stderr=writer,
            env={**os.environ, "TERM": "xterm", "COLUMNS": WIDTH, **environment},
        )
        os.close(writer)
        terminal = cls(reader, process)
        try:
            yield terminal
        finally:
            terminal.close()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def until(self, text: str, within: float = START_SECONDS) -> str:
        """Wait for a text after what was waited for before. Return what was shown up to its end."""

        async def wait() -> int:
            while (found := self.output.find(text, self._seen)) < 0:
                assert not self._is_over, f"the program ended without {text!r}: {self.output[self._seen :]}"
                self._changed.clear()
                await self._changed.wait()
            return found + len(text)

        try:
            end = await asyncio.wait_for(wait(), within)
        except asyncio.TimeoutError:
            raise AssertionError(f"no {text!r} within {within} s: {self.output[self._seen :]}") from None
        shown, self._seen = self.output[self._seen : end], end
        return shown

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._reader, f"{line}\n".encode())

    async def wait(self) -> int:
        """Wait for the end of the program, and return its exit code."""
        code = await asyncio.wait_for(self._process.wait(), START_SECONDS)
        while not self._is_over:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), DEADLINE)
        return code

    def close(self) -> None:
        """Close the user's end."""
        self._end()
        os.close(self._reader)

    def _read(self) -> None:
        try:
            part = os.read(self._reader, 65536)
        except OSError:
            # On Linux, reading from a closed terminal raises an error instead of an end of file.
            part = b""
        if not part:
            self._end()
        self.output += part.decode(errors="replace")
        self._changed.set()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            asyncio.get_running_loop().remove_reader(self._reader)

"""A tail that notifies independent readers: workers that share only the notifications. They serve no clients.

A variant of `bench.workers`, as a process of its own: `python -m bench.notified_readers URL WORKERS`. It prints a line
when the tail has started.
"""

from __future__ import annotations

import asyncio
import os
import sys

from stream_server.journal.reader import JournalReader
from stream_server.protocol.cursor import JournalPosition
from support import lossless_tails
from support.lossless_ledger import Row


async def read_when_notified(url: str, pipe: int) -> None:
    """Read the journal whenever the pipe has a byte."""
    wake_up, loop = asyncio.Event(), asyncio.get_running_loop()

    def wake() -> None:
        os.read(pipe, 4096)
        wake_up.set()

    loop.add_reader(pipe, wake)
    async with JournalReader.open(url) as reader:
        position = (await reader.read_head()).position
        while True:
            await wake_up.wait()
            wake_up.clear()
            position = (await reader.read_after(position)).position


async def notify_readers(url: str, pipes: list[int]) -> None:
    """Follow the journal, and write a byte into each pipe after each batch."""

    def record(reason: str, _position: JournalPosition, _rows: list[Row]) -> None:
        for pipe in pipes:
            os.write(pipe, b"!")
        if reason:
            print(reason, flush=True)

    await lossless_tails.make_tail(url, record, None).run()


def main() -> None:
    """Start the readers as child processes, and follow the journal in this one."""
    lossless_tails.CHECK_SECONDS = 3600.0
    lossless_tails.POLL_SECONDS = 2.0
    url, workers = sys.argv[1], int(sys.argv[2])
    pipes = []
    for _ in range(workers - 1):
        reading, writing = os.pipe()
        if os.fork() == 0:
            asyncio.run(read_when_notified(url, reading))
        pipes.append(writing)
    asyncio.run(notify_readers(url, pipes))


if __name__ == "__main__":
    main()

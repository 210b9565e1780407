"""Messages between two processes, over a pair of sockets: each with its length before it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Generic, TypeVar

import msgspec

from stream_server.server.workers.messages import WorkerMessage

LENGTH_BYTES = 4

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


def encode_message(message: WorkerMessage) -> bytes:
    """Return a message as it is sent."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class UndecodableMessage(Exception):
    """A message was received that is none of those that the other end may send. The next one can be received."""


class Channel(Generic[T]):
    """One end. What is sent is never lost while the other end lives, and comes in order.

    Args:
        reader: Of the connection.
        writer: Of the connection.
        decoder: Of what the other end sends.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[T]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    @classmethod
    async def open(cls, sock: socket.socket, kind: Any) -> Channel[T]:  # noqa: ANN401 # a union has no type
        """Take a socket.

        Args:
            sock: One of a pair.
            kind: What the other end sends.
        """
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer, msgspec.msgpack.Decoder(kind))

    def send(self, message: WorkerMessage) -> None:
        """Send a message."""
        self.send_encoded(encode_message(message))

    def send_encoded(self, data: bytes) -> None:
        """Send a message that has been packed. What the other end has not read waits here."""
        self._writer.write(data)

    async def receive(self) -> T:
        """Return the next message.

        Raises:
            EOFError: The other end is gone.
            UndecodableMessage: It is no message. It has been consumed.
        """
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise EOFError("The other process is gone") from error
        try:
            return self._decoder.decode(body)
        except Exception as error:
            raise UndecodableMessage(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close this end."""
        self._writer.close()

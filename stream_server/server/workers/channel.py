"""Messages between two processes over a socket pair: each is MessagePack with its length before it."""

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
    """Return a message as bytes on the socket, length included."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class UndecodableMessage(Exception):
    """The received message is none of those that the other end may send. The next message can be received."""


class Channel(Generic[T]):
    """One end of the socket pair. Messages arrive in order, and none is lost while the other process lives."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[T]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    @classmethod
    async def open(cls, sock: socket.socket, message_type: Any) -> Channel[T]:  # noqa: ANN401 # a union has no type
        """Open a channel on one socket of a pair.

        Args:
            sock: The channel owns it from now on.
            message_type: Type of the messages that the other end sends.
        """
        reader, writer = await asyncio.open_connection(sock=sock)
        return cls(reader, writer, msgspec.msgpack.Decoder(message_type))

    def send(self, message: WorkerMessage) -> None:
        self.send_encoded(encode_message(message))

    def send_encoded(self, data: bytes) -> None:
        """Send a message that `encode_message` has encoded.

        Does not wait: what the other end has not read is buffered here without bound. A worker that stops reading is
        killed after `WORKER_TIMEOUT_SECONDS`.
        """
        self._writer.write(data)

    async def receive(self) -> T:
        """Return the next message.

        Raises:
            EOFError: The other process has ended.
            UndecodableMessage: The message has been consumed.
        """
        try:
            length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
            body = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise EOFError("The process at the other end of the channel has ended") from error
        try:
            return self._decoder.decode(body)
        except Exception as error:
            raise UndecodableMessage(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._writer.close()

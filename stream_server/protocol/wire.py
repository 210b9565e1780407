"""Encoding and decoding of frames. A frame is encoded once, however many clients receive it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias

import msgspec

from stream_server.protocol.cursor import ResumeToken
from stream_server.protocol.frames import AnyFrame, Ping

# JSON need not escape them, but `str.splitlines`, and with it some NDJSON clients, takes them for the end of a line.
_LINE_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\u0085\u2028\u2029")

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyFrame] = msgspec.json.Decoder(AnyFrame)


Framing: TypeAlias = "Callable[[Wire], bytes]"
"""Encodes a frame for one transport. A module-level function, so that it can be the key of a cache."""


class Wire:
    """A frame that is sent to any number of clients, encoded once for each transport."""

    last_labelled: tuple[Framing, str, bytes] | None = None
    """Framing, stream ID and bytes for the last client that got this frame on a connection with several streams."""

    def __init__(self, frame: AnyFrame, token: ResumeToken | None = None) -> None:
        self.frame = frame
        self.token = token
        """Token of a client that has received this frame; only the last frame of a batch has one."""
        self._framed: dict[Framing, bytes] = {}

    @cached_property
    def type(self) -> str:
        """The frame's `type`."""
        return type_of(self.frame)

    @cached_property
    def json(self) -> bytes:
        """The frame as one line of JSON, without its cursor."""
        json = _encoder.encode(self.frame)
        for character, escaped in _LINE_ENDS:
            if character in json:
                json = json.replace(character, escaped)
        return json

    @cached_property
    def text(self) -> str:
        """The frame as JSON with the cursor as the last member, as on WebSocket and NDJSON."""
        if self.token is None:
            return self.json.decode()
        # A cursor has only letters, digits and ".:,~-", none of which JSON escapes.
        return f'{self.json[:-1].decode()},"cursor":"{self.token}"}}'

    def framed(self, framing: Framing) -> bytes:
        """Return `framing(self)`, computed once for each framing."""
        framed = self._framed.get(framing)
        if framed is None:
            framed = self._framed[framing] = framing(self)
        return framed


PING = Wire(Ping())


def type_of(frame: AnyFrame) -> str:
    """Return the `type` of a frame."""
    return str(type(frame).__struct_config__.tag)


def decode_frame(text: bytes | str) -> AnyFrame:
    """Return the frame of a JSON text. Unknown members are ignored, so that older clients understand newer servers.

    Raises:
        msgspec.ValidationError: The text is not a frame, or of a type that this version does not know.
    """
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        raise msgspec.ValidationError(str(error)) from error

"""Encoding and decoding of frames. A frame is encoded once, however many clients receive it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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

    # No `cached_property`: before Python 3.12 it takes a lock, which costs more than encoding (`make bench-own-runs`).
    __slots__ = ("_framed", "_json", "_text", "frame", "last_labelled", "token")

    def __init__(self, frame: AnyFrame, token: ResumeToken | None = None) -> None:
        self.frame = frame
        self.token = token
        """Token of a client that has received this frame; only the last frame of a batch has one."""

        self.last_labelled: tuple[Framing, str, bytes] | None = None
        """Framing, stream ID and bytes for the last client that got this frame on a connection with several streams."""

        self._json: bytes | None = None
        self._text: str | None = None
        # Most frames are framed for one transport only.
        self._framed: tuple[tuple[Framing, bytes], ...] = ()

    @property
    def type(self) -> str:
        """The frame's `type`."""
        return type_of(self.frame)

    @property
    def json(self) -> bytes:
        """The frame as one line of JSON, without its cursor."""
        if self._json is None:
            self._json = _encode_line(self.frame)
        return self._json

    @property
    def text(self) -> str:
        """The frame as JSON with the cursor as the last member, as on WebSocket and NDJSON."""
        if self._text is None:
            self._text = self.json.decode()
            if self.token is not None:
                # A cursor has only letters, digits and ".:,~-", none of which JSON escapes.
                self._text = f'{self._text[:-1]},"cursor":"{self.token}"}}'
        return self._text

    def framed(self, framing: Framing) -> bytes:
        """Return `framing(self)`, computed once for each framing."""
        for known, framed in self._framed:
            if known is framing:
                return framed
        framed = framing(self)
        self._framed = (*self._framed, (framing, framed))
        return framed


PING = Wire(Ping())


def type_of(frame: AnyFrame) -> str:
    """Return the `type` of a frame."""
    return _type_of_class(type(frame))


@cache
def _type_of_class(frame_class: type[AnyFrame]) -> str:
    # msgspec builds this attribute at each access.
    return str(frame_class.__struct_config__.tag)


def _encode_line(frame: AnyFrame) -> bytes:
    json = _encoder.encode(frame)
    for character, escaped in _LINE_ENDS:
        if character in json:
            json = json.replace(character, escaped)
    return json


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

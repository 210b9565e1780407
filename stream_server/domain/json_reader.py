"""Reading of a large JSON text value by value.

Other decoders hold the interpreter for the whole text, so that an event loop in another thread waits for them, up to
70 ms for 20 MiB (`make bench-large-dags`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JsonReader:
    """A position in a JSON text.

    The caller of `iter_keys` and `iter_items` must read each value before it goes on. All methods raise
    `msgspec.DecodeError` if the text is not JSON, or has no value of this kind here.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def iter_keys(self) -> Iterator[str]:
        """Yield the keys of the object that is here."""
        self._expect("{")
        if self._skip("}"):
            return
        while True:
            key = self.read_value()
            if not isinstance(key, str):
                raise self._error("a key")
            self._expect(":")
            yield key
            if not self._skip(","):
                break
        self._expect("}")

    def iter_items(self) -> Iterator[None]:
        """Yield once before each item of the array that is here."""
        self._expect("[")
        if self._skip("]"):
            return
        while True:
            yield
            if not self._skip(","):
                break
        self._expect("]")

    def read_value(self) -> Any:  # noqa: ANN401 # any JSON value
        self._skip_space()
        try:
            value, self._at = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            raise self._error("a value") from None
        return value

    def read_end(self) -> None:
        self._skip_space()
        if self._at != len(self._text):
            raise self._error("the end")

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None, "it matches the empty string"
        self._at = match.end()

    def _skip(self, character: str) -> bool:
        """Move past a character, and return whether it was here."""
        self._skip_space()
        is_here = self._text.startswith(character, self._at)
        self._at += is_here
        return is_here

    def _expect(self, character: str) -> None:
        if not self._skip(character):
            raise self._error(f"`{character}`")

    def _error(self, expected: str) -> msgspec.DecodeError:
        return msgspec.DecodeError(f"The text must have {expected} at character {self._at}")

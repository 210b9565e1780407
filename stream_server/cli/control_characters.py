"""Control characters in texts of tasks: a terminal would execute them."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def replace_control_characters(text: str) -> str:
    """Return a text with U+FFFD for each control character (C0, DEL and C1), except newlines and tabs."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))

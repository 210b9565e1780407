"""The header `Prefer` (RFC 7240): how long a client waits for a response, if the query has no `timeout`. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_HEADER_LENGTH = 1000
_PREFERENCE = re.compile(r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*(?:=\s*(?:"([^"]*)"|([^\s;,"]*)))?[^,]*(?:,|$)')
_SECONDS = re.compile(r"[0-9]{1,9}")


class WaitPreference(NamedTuple):
    """A preference that can be applied."""

    seconds: float
    text: str
    """Value of `Preference-Applied`."""


def parse_wait_preference(header: str | None) -> WaitPreference | None:
    """Return how long to wait: `wait=n` seconds, or not at all with `respond-async` alone; `None` without either.

    Of preferences with the same name, the first counts. Those that are invalid or unknown are ignored (section 2).
    """
    preferences: dict[str, str] = {}
    for name, quoted, value in _PREFERENCE.findall((header or "")[:MAX_HEADER_LENGTH]):
        preferences.setdefault(name.lower(), quoted or value)
    wait = preferences.get("wait", "")
    if _SECONDS.fullmatch(wait):
        return WaitPreference(float(wait), f"wait={wait}")
    return WaitPreference(0.0, "respond-async") if "respond-async" in preferences else None

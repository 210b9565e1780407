from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.http.preferences import WaitPreference, parse_wait_preference


@pytest.mark.parametrize(
    ("header", "preference"),
    [
        (None, None),
        ("", None),
        ("return=minimal", None),
        ("wait=10", (10, "wait=10")),
        ("Wait = 10", (10, "wait=10")),
        ('wait="10"', (10, "wait=10")),
        ("respond-async", (0, "respond-async")),
        ("respond-async, wait=10", (10, "wait=10")),
        ('foo="a; b"; bar, wait=5; x=y', (5, "wait=5")),
        ("wait=5, wait=10", (5, "wait=5")),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait", None),
        ("wait=soon, respond-async", (0, "respond-async")),
        ("await=10", None),
    ],
)
def test_preferences(header: str | None, preference: tuple[float, str] | None) -> None:
    assert parse_wait_preference(header) == (None if preference is None else WaitPreference(*preference))


@given(st.text(st.characters(max_codepoint=255), max_size=1200))
def test_every_header_is_accepted(header: str) -> None:
    parse_wait_preference(header)

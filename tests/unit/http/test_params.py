"""Values that clients write into queries and headers."""

from __future__ import annotations

import math
import tracemalloc
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from stream_server.errors import BadParameter
from stream_server.http.params import (
    MAX_PREFERENCES,
    negotiate_media_type,
    parse_integer,
    parse_quality_values,
    parse_query,
)

JSON, SSE = "application/json", "text/event-stream"


def connection(query: str = "", accept: str = "") -> HTTPConnection:
    headers = [(b"accept", accept.encode("latin-1"))]
    return HTTPConnection({"type": "http", "query_string": query.encode(), "headers": headers})


def limit(text: str) -> int:
    return parse_integer(connection(f"limit={quote(text, safe='')}"), "limit", 50, 1, 200)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("200", 200), ("050", 50), ("000000200", 200)])
def test_a_number_within_bounds_is_used(text: str, value: int) -> None:
    assert limit(text) == value


def test_a_missing_number_has_its_default() -> None:
    assert parse_integer(connection(), "limit", 50, 1, 200) == 50


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "201", "-1", "+5", " 5", "5 ", "5\n", "5_0", "5.0", "1e1", "0x5", "NaN", "inf"),
        *("\u0665", "\u00b2", "\uff15"),
        *("00000002099999999", "0000000005", "9" * 5000, "0" * 5000 + "5"),
    ],
)
def test_any_other_value_of_a_number_is_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="must be an integer from 1 to 200"):
        limit(text)


@given(st.one_of(st.text(max_size=30), st.from_regex("0{0,20}[0-9]{0,20}", fullmatch=True)))
def test_every_accepted_number_is_within_its_bounds(text: str) -> None:
    try:
        value = limit(text)
    except BadParameter:
        return
    assert 1 <= value <= 200
    assert value == int(text)


@pytest.mark.parametrize(
    ("quality", "weight"), [("1", 1.0), ("0", 0.0), ("0.5", 0.5), ("1.000", 1.0), (".2", 0.2), ("0.", 0.0), ("5", 1.0)]
)
def test_a_weight_is_from_0_to_1(quality: str, weight: float) -> None:
    assert parse_quality_values(f"a;q={quality}") == {"a": weight}


@pytest.mark.parametrize(
    "quality", ["", ".", "nan", "inf", "-1", "+1", "1e0", "1_0", "0x1", "\u0663", "\u00b2", "9" * 5000 + "x"]
)
def test_an_invalid_weight_counts_as_0(quality: str) -> None:
    assert parse_quality_values(f"a;q={quality}") == {"a": 0.0}


def test_a_weight_of_many_digits_is_read() -> None:
    assert parse_quality_values(f"a;q={'9' * 5000}") == {"a": 1.0}


@given(st.text(max_size=20))
def test_every_weight_can_be_compared(quality: str) -> None:
    assert all(
        0 <= weight <= 1 and not math.isnan(weight) for weight in parse_quality_values(f"a;q={quality}").values()
    )


def test_an_invalid_weight_is_not_preferred() -> None:
    assert negotiate_media_type(connection(accept=f"{JSON};q=nan, {SSE}"), JSON, SSE) == SSE


def test_long_queries_are_not_kept_in_memory() -> None:
    tracemalloc.start()
    for number in range(300):
        query = f"result={number}&" + "&".join(f"a{item}={'b' * 30}" for item in range(400))
        assert len(parse_query(connection(query))) == 401
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**20


def test_a_query_has_a_bounded_number_of_parameters() -> None:
    assert parse_query(connection("&".join(["a=b"] * 1000))).getlist("a") == ["b"] * 1000
    with pytest.raises(BadParameter, match="more than 1000 parameters"):
        parse_query(connection("&".join(["a=b"] * 1001)))


ACCEPTED = (
    ("", JSON),
    ("*/*", JSON),
    (SSE, SSE),
    (f"{SSE};q=0", JSON),
    (f"{JSON};q=0, {SSE};q=0.001", SSE),
    (f"{SSE};charset=utf-8;q=0.9, {JSON};q=0.8", SSE),
    (f"TEXT/EVENT-STREAM;Q=1.0,{JSON};q=.5", SSE),
    ("text/*", SSE),
    ("text/*;q=0.1, */*;q=0.2", JSON),
    (f"{SSE}; q=0.5; ext=1, {JSON}; q=0.4", SSE),
    ("image/png", JSON),
    (",,;;q=,=", JSON),
)


@pytest.mark.parametrize(("accept", "expected"), ACCEPTED)
def test_odd_weights_select_a_media_type(accept: str, expected: str) -> None:
    assert negotiate_media_type(connection(accept=accept), JSON, SSE) == expected


def test_only_the_first_quality_values_are_read() -> None:
    names = [f"a/{number}" for number in range(2 * MAX_PREFERENCES)]
    assert list(parse_quality_values(",".join(names))) == names[:MAX_PREFERENCES]
    assert parse_quality_values("a" + ";x" * 10_000) == {"a": 1.0}

"""Which origin a header names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.http.caller import authority_of


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        ("http://here", "here"),
        ("https://app.example.com", "app.example.com"),
        ("http://127.0.0.1:8090", "127.0.0.1:8090"),
        ("http://[::1]:8090", "[::1]:8090"),
        ("http://my_service:65535", "my_service:65535"),
        ("https://xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("HTTP://Here", "Here"),
        ("http://here/", "here"),
        ("http://here/page?a=b", "here"),
        ("vscode-webview://abc", "abc"),
    ],
)
def test_an_origin_names_host_and_port(origin: str, authority: str) -> None:
    assert authority_of(origin) == authority


@pytest.mark.parametrize(
    "origin",
    [
        *("", "null", "*", "here", "here:8090", "//here", "://here", "http:here", "http:/here", "http://", "http:///"),
        *("http://[", "http://]", "http://[::1", "http://::1", "http://[::1]a", "http://[v1.x]", "http://[]"),
        *("http://a:", "http://a:b", "http://a:-1", "http://a:65536", "http://a:99999999", "http://a:" + "9" * 5000),
        *(
            "http://a:\u00b2",
            "http://a:\u0663",
            "http://\xff",
            "http://\u2100",
            "http://a b",
            "http://a\tb",
            "http://a\n",
        ),
        *("http://user@here", "http://a,b@here", " http://here", "http://here ", "http://here, http://there"),
    ],
)
def test_what_is_no_origin_names_none(origin: str) -> None:
    assert authority_of(origin) is None


@given(st.one_of(st.text(), st.text("htp:/[]@a1.", max_size=20)))
def test_no_text_raises_an_error(origin: str) -> None:
    assert authority_of(origin) != ""

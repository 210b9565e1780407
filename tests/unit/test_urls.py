from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.urls import Origin, find_secrets, mask_secrets, redact_url

passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"<{text}>")
"""In angle brackets, so that they occur nowhere else in a URL."""

special_passwords = pytest.mark.parametrize(
    "password", ["a/b", "a?b", "a#b", "a[b", "a]b", "a:b", "a b", "a@b", "a@b/c:d"]
)
"""Each has a character that ends a password, or a URL, for some parser."""


@given(passwords)
def test_redact_never_shows_an_encoded_password(password: str) -> None:
    encoded = quote(password, safe="")
    shown = redact_url(f"postgresql://user:{encoded}@host:5432/db?sslpassword={encoded}")
    assert shown == "postgresql://user@host:5432/db"


@given(passwords)
def test_nothing_shows_a_raw_password(password: str) -> None:
    url = f"postgresql://user:{password}@host:5432/db"
    assert password not in redact_url(url)
    assert password not in mask_secrets(url)


@special_passwords
def test_nothing_shows_a_part_of_a_raw_password(password: str) -> None:
    url = f"postgresql://user:{password}@host:5432/db"
    assert redact_url(url) == "postgresql://user@host:5432/db"
    assert mask_secrets(url) == f"postgresql://user:{'*' * len(password)}@host:5432/db"
    assert find_secrets(url) == {password}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user@host/db", "postgresql://user@host/db"),
        ("postgresql+psycopg2://user:a:b@c@host/db", "postgresql+psycopg2://user@host/db"),
        ("postgresql:///db?host=/tmp&password=secret", "postgresql:///db"),
        ("postgresql://:secret@/db", "postgresql://@/db"),
        ("postgresql://user:pass@one:1,[::1]:2/db", "postgresql://user@one:1,[::1]:2/db"),
        ("https://airflow.example.com:8443/base/", "https://airflow.example.com:8443/base/"),
        ("postgresql://user:secret/db", "postgresql://***/db"),
        ("host=h password=secret", ""),
    ],
)
def test_redact_keeps_the_public_parts(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user@host:5432/db", "postgresql://user@host:5432/db"),
        ("postgresql://user:pw@h/db?password=pw", "postgresql://user:**@h/db?***********"),
        ("postgresql://user:secret/db", "postgresql://***********/db"),
        ("password=secret", "***************"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("", ""),
    ],
)
def test_mask_keeps_the_length(url: str, shown: str) -> None:
    assert mask_secrets(url) == shown
    assert len(shown) == len(url)


@given(st.text())
def test_mask_keeps_the_length_of_anything(text: str) -> None:
    assert len(mask_secrets(text)) == len(text)


@pytest.mark.parametrize(
    ("url", "hidden"),
    [
        ("postgresql://u:p%40w@h/db?sslmode=require&password=q", {"p%40w", "p@w", "q"}),
        ("postgresql://airflow:airflow@h/db", set()),
        ("postgresql://u:secret", {"secret"}),
        ("password=secret", {"password=secret"}),
        ("http://h:80/x", set()),
    ],
)
def test_secrets_are_the_parts_that_are_not_public(url: str, hidden: set[str]) -> None:
    assert find_secrets(url) == hidden


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
def test_an_origin_has_host_and_port(origin: str, authority: str) -> None:
    parsed = Origin.parse(origin)
    assert parsed is not None
    assert parsed.authority == authority
    assert origin.startswith(str(parsed))


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
def test_a_text_that_is_no_origin_has_none(origin: str) -> None:
    assert Origin.parse(origin) is None


@given(st.one_of(st.text(), st.text("htp:/[]@a1.", max_size=20)))
def test_no_text_makes_origin_raise(origin: str) -> None:
    parsed = Origin.parse(origin)
    assert parsed is None or parsed.authority

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.urls import find_secrets, mask_secrets, redact_url

passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"<{text}>")
"""Marked, so that they occur nowhere else in a URL."""

telling_passwords = pytest.mark.parametrize(
    "password", ["a/b", "a?b", "a#b", "a[b", "a]b", "a:b", "a b", "a@b", "a@b/c:d"]
)
"""Each has a character that ends a password, or a URL, for one parser or another."""


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


@telling_passwords
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
def test_redact_leaves_what_may_be_seen(url: str, shown: str) -> None:
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
def test_conceal_keeps_the_length(url: str, shown: str) -> None:
    assert mask_secrets(url) == shown
    assert len(shown) == len(url)


@given(st.text())
def test_conceal_keeps_the_length_of_anything(text: str) -> None:
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
def test_secrets_are_what_is_not_shown_elsewhere(url: str, hidden: set[str]) -> None:
    assert find_secrets(url) == hidden

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.errors import SettingsError
from stream_server.journal.connection import build_connect_arguments
from stream_server.journal.dsn import normalize_url, split_hosts

passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"<{text}>")
"""Marked, so that they occur nowhere else in a URL."""

raw_passwords = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="@%"), min_size=1).map(
    lambda text: f"<{text}>"
)
"""What may stand in a URL of SQLAlchemy's as it is: anything but the at sign, and what escapes."""

telling_passwords = pytest.mark.parametrize("password", ["a/b", "a?b", "a#b", "a[b", "a]b", "a:b", "a b", "a\u2100b"])
"""Each has a character that ends a password, or a URL, for one parser or another."""


def refusal_of(url: str) -> str:
    """What `normalize` says against a URL; nothing if it accepts it."""
    try:
        normalize_url(url)
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@h:5432/db", "postgresql://u:p@h:5432/db"),
        ("postgres://u@h/db", "postgresql://u@h/db"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+psycopg://u:p@h/db", "postgresql://u:p@h/db"),
        ("postgresql+asyncpg://u:p@h/db?ssl=require", "postgresql://u:p@h/db?sslmode=require"),
        ("POSTGRESQL+PSYCOPG2://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:p%40ss%2F@h/db", "postgresql://u:p%40ss%2F@h/db"),
        ("postgresql://[::1]:5433/db", "postgresql://[::1]:5433/db"),
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql://", "postgresql://"),
        ("postgresql://h", "postgresql://h"),
        ("postgresql:///db?host=/var/run/postgresql", "postgresql:///db?host=%2Fvar%2Frun%2Fpostgresql"),
        ("postgresql+psycopg2://u:p@/db?host=/tmp", "postgresql://u:p@/db?host=%2Ftmp"),
        (
            "postgresql://h/db?sslmode=require&sslkey=/a%20b.key",
            "postgresql://h/db?sslmode=require&sslkey=%2Fa%20b.key",
        ),
        ("postgresql://h/db?options=-csearch_path%3Dairflow", "postgresql://h/db?options=-csearch_path%3Dairflow"),
        ("postgresql+asyncpg://h/db?prepared_statement_cache_size=0&async_fallback=true", "postgresql://h/db"),
        ("postgresql://h/db?application_name=", "postgresql://h/db?application_name="),
    ],
)
def test_sqlalchemys_forms_become_those_of_libpq(url: str, expected: str) -> None:
    assert normalize_url(url) == expected
    assert normalize_url(expected) == expected


@pytest.mark.parametrize(
    ("url", "named"),
    [
        *(("mysql+mysqldb://u:secret@h/db", "mysql://"), ("sqlite:////tmp/secret.db", "sqlite://")),
        *(("secret", "nothing://"), ("", "nothing://"), ("host=h password=secret", "nothing://")),
    ],
)
def test_another_database_is_refused_without_repeating_the_url(url: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        normalize_url(url)
    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://user:secret", "postgresql://user:secret/db", "postgresql://user:secret@host:secret/db"),
        *("postgresql://user:p@secret:x/y@host/db", "postgresql://[secret/db", "postgresql://host:secret99999/db"),
    ],
)
def test_what_has_no_proper_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="no proper host and port") as refused:
        normalize_url(url)
    assert "secret" not in str(refused.value)


@given(passwords)
def test_an_encoded_password_stays_what_it_is(password: str) -> None:
    url = normalize_url(f"postgresql+psycopg2://user:{quote(password, safe='')}@host:5432/db")
    assert unquote(urlsplit(url).password or "") == password
    assert urlsplit(url).hostname == "host"
    assert urlsplit(url).path == "/db"


@telling_passwords
def test_a_password_that_sqlalchemy_understands_as_it_is_is_understood(password: str) -> None:
    """Whoever configures Airflow may write anything up to the at sign (`sqlalchemy.engine.make_url`)."""
    parts = urlsplit(normalize_url(f"postgresql+psycopg2://user:{password}@host/db"))
    assert (unquote(parts.password or ""), parts.hostname, parts.path) == (password, "host", "/db")


@given(raw_passwords, st.sampled_from(["postgresql", "postgresql+psycopg2", "mysql"]))
def test_no_password_makes_normalize_raise_anything_but_a_settings_error(password: str, scheme: str) -> None:
    assert password not in refusal_of(f"{scheme}://user:{password}@host/db")


def test_every_connection_says_who_it_is() -> None:
    arguments = build_connect_arguments("postgresql+psycopg2://u:p@h/db")
    assert arguments["dsn"] == "postgresql://u:p@h/db"
    assert arguments["server_settings"] == {"application_name": "stream_server"}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@h:1/db", ["postgresql://u@h:1/db"]),
        ("postgresql:///db?host=%2Frun", ["postgresql:///db?host=%2Frun"]),
        ("postgresql://h1,h2:2", ["postgresql://h1", "postgresql://h2:2"]),
        (
            "postgresql+psycopg2://h1,h2:a,b@h1,h2:2/h1,h2?target_session_attrs=read-write",
            [
                "postgresql://h1%2Ch2:a%2Cb@h1/h1,h2?target_session_attrs=read-write",
                "postgresql://h1%2Ch2:a%2Cb@h2:2/h1,h2?target_session_attrs=read-write",
            ],
        ),
        (
            "postgresql://h1,h2/db?target_session_attrs=prefer-standby",
            ["postgresql://h1,h2/db?target_session_attrs=prefer-standby"],
        ),
    ],
)
def test_each_host_has_a_url_of_its_own(url: str, expected: list[str]) -> None:
    assert split_hosts(normalize_url(url)) == expected

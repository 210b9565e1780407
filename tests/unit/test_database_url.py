from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.errors import SettingsError
from stream_server.journal.connection import build_connect_arguments
from stream_server.urls import DatabaseUrl

passwords = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"<{text}>")
"""In angle brackets, so that they occur nowhere else in a URL."""

raw_passwords = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="@%"), min_size=1).map(
    lambda text: f"<{text}>"
)
"""Passwords that SQLAlchemy accepts unencoded: any text without `@` and `%`."""

special_passwords = pytest.mark.parametrize("password", ["a/b", "a?b", "a#b", "a[b", "a]b", "a:b", "a b", "a\u2100b"])
"""Each has a character that ends a password, or a URL, for some parser."""


def error_of(url: str) -> str:
    """Return the error text for a URL; empty if it is accepted."""
    try:
        DatabaseUrl.parse(url)
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
def test_the_form_of_sqlalchemy_becomes_that_of_libpq(url: str, expected: str) -> None:
    assert DatabaseUrl.parse(url).text == expected
    assert DatabaseUrl.parse(expected).text == expected


@pytest.mark.parametrize(
    ("url", "named"),
    [
        *(("mysql+mysqldb://u:secret@h/db", "mysql://"), ("sqlite:////tmp/secret.db", "sqlite://")),
        *(("secret", "nothing://"), ("", "nothing://"), ("host=h password=secret", "nothing://")),
    ],
)
def test_another_database_is_refused_without_the_url(url: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        DatabaseUrl.parse(url)
    assert named in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://user:secret", "postgresql://user:secret/db", "postgresql://user:secret@host:secret/db"),
        *("postgresql://user:p@secret:x/y@host/db", "postgresql://[secret/db", "postgresql://host:secret99999/db"),
    ],
)
def test_a_url_without_a_valid_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="no valid host and port") as refused:
        DatabaseUrl.parse(url)
    assert "secret" not in str(refused.value)


@given(passwords)
def test_an_encoded_password_is_unchanged(password: str) -> None:
    url = DatabaseUrl.parse(f"postgresql+psycopg2://user:{quote(password, safe='')}@host:5432/db").text
    assert unquote(urlsplit(url).password or "") == password
    assert urlsplit(url).hostname == "host"
    assert urlsplit(url).path == "/db"


@special_passwords
def test_an_unencoded_password_is_read_as_sqlalchemy_reads_it(password: str) -> None:
    """Airflow's configuration may have any character up to the at sign (`sqlalchemy.engine.make_url`)."""
    parts = urlsplit(DatabaseUrl.parse(f"postgresql+psycopg2://user:{password}@host/db").text)
    assert (unquote(parts.password or ""), parts.hostname, parts.path) == (password, "host", "/db")


@given(raw_passwords, st.sampled_from(["postgresql", "postgresql+psycopg2", "mysql"]))
def test_every_password_is_accepted_or_a_settings_error(password: str, scheme: str) -> None:
    assert password not in error_of(f"{scheme}://user:{password}@host/db")


def test_every_connection_has_our_application_name() -> None:
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
def test_a_url_is_split_into_one_for_each_host(url: str, expected: list[str]) -> None:
    assert [each.text for each in DatabaseUrl.parse(url).split_hosts()] == expected


@given(passwords)
def test_neither_str_nor_repr_shows_secrets(password: str) -> None:
    encoded = quote(password, safe="")
    url = DatabaseUrl.parse(f"postgresql://user:{encoded}@host:5432/db?sslpassword={encoded}")
    assert str(url) == "postgresql://user@host:5432/db"
    assert repr(url) == "DatabaseUrl(user='user', hosts='host:5432', database='db')"

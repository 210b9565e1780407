from __future__ import annotations

import ssl
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_server.errors import SettingsError
from stream_server.journal.connection import CONNECT_TIMEOUT, build_connect_arguments
from stream_server.urls import DatabaseUrl, add_password_source

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
        ("postgresql://h/db?connect_timeout=10&sslmode=require", "postgresql://h/db?sslmode=require"),
        ("postgresql+psycopg2://u@/db?host=h1:5433&host=h2:5434", "postgresql://u@h1:5433,h2:5434/db"),
        ("postgresql+psycopg2://u@/db?host=h1&host=h2", "postgresql://u@h1,h2/db"),
        ("postgresql+psycopg://u@/db?host=h1,h2&port=5433,5434", "postgresql://u@h1:5433,h2:5434/db"),
        ("postgresql://u@/db?host=h1,h2&port=5433", "postgresql://u@h1:5433,h2:5433/db"),
        ("postgresql://u@/db?host=::1&port=5433", "postgresql://u@[::1]:5433/db"),
        ("postgresql://u@/db?hostaddr=10.0.0.7", "postgresql://u@10.0.0.7/db"),
        ("postgresql://u@/db?host=/tmp&port=5433", "postgresql://u@/db?host=%2Ftmp&port=5433"),
        ("postgresql://h/db?service=x&passfile=/run/p", "postgresql://h/db?service=x&passfile=%2Frun%2Fp"),
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


@pytest.mark.parametrize(
    "query",
    [
        *("sslmode=on", "target_session_attrs=master", "connect_timeout=soon", "host=a,b&port=1,2,3", "host=a&port=x"),
        "host=a@b",
    ],
)
def test_a_wrong_option_is_a_settings_error(query: str) -> None:
    assert query.partition("=")[0] in error_of(f"postgresql+psycopg2:///db?{query}")


def test_options_that_asyncpg_lacks_are_left_out_and_named() -> None:
    url = DatabaseUrl.parse("postgresql://h/db?keepalives=1&sslmode=prefer&gssencmode=disable&keepalives_idle=30")
    assert url.text == "postgresql://h/db?sslmode=prefer"
    assert url.unsupported == ("gssencmode", "keepalives", "keepalives_idle")


def test_a_timeout_of_the_url_is_used() -> None:
    assert build_connect_arguments("postgresql://h/db?connect_timeout=25")["timeout"] == 25
    for unlimited in ("", "?connect_timeout=0", "?connect_timeout=-1", "?connect_timeout="):
        assert build_connect_arguments(f"postgresql://h/db{unlimited}")["timeout"] == CONNECT_TIMEOUT


def test_the_certificates_of_the_system_can_be_used() -> None:
    context = build_connect_arguments("postgresql://h/db?sslmode=verify-full&sslrootcert=system")["ssl"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert "ssl" not in build_connect_arguments("postgresql://h/db?sslrootcert=/system")


@pytest.mark.parametrize("url", ["postgresql://u@h/db", "postgresql://u@h/db?sslmode=require", "postgresql://u@h/db?"])
def test_the_source_of_a_password_is_kept_beside_the_url(url: str) -> None:
    parsed = DatabaseUrl.parse(add_password_source(url, "/run/a b&c", "get 'x y'"))
    assert (parsed.password_file, parsed.password_command) == ("/run/a b&c", "get 'x y'")
    assert parsed.text == DatabaseUrl.parse(url).text
    assert all("get" not in each.text and each.password_file for each in parsed.split_hosts())
    assert add_password_source(url, None, None) == url


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
        ("postgresql://h1,h2?sslmode=prefer", ["postgresql://h1?sslmode=prefer", "postgresql://h2?sslmode=prefer"]),
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

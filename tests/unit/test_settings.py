from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream_server.errors import SettingsError
from stream_server.settings import ENV_PREFIX, Settings, is_loopback, parse_duration, parse_size

URL = "postgresql://airflow@db/airflow"


@pytest.fixture(autouse=True)
def empty_environment() -> Iterator[None]:
    """Remove the settings' variables, once for all examples of a property, and restore them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
            patch.delenv(name)
        yield


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("500ms", 0.5), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("7", 7.0), ("0.25", 0.25), ("1.5m", 90.0)),
        *((" 5 s ", 5.0), ("5s\n", 5.0), ("0", 0.0), (3, 3.0), (2.5, 2.5)),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "-1s", "+1s", "5 sec", "5S", "1d", "1m30s", "1e3", "1_0", ".5s", "5.", "nan", "inf", "1,5s"),
        *("\u0663s", "0.\u0663", "\u00b2", "5\u2003s", "\u20035", "1" * 10, "0" * 5000, True, None, []),
    ],
)
def test_an_invalid_duration_is_refused_with_the_valid_form(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 500ms"):
        parse_duration(text)


@given(st.text())
def test_no_text_raises_anything_but_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds >= 0


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_units_are_multiples_of_each_other(number: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * factor)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("1000", 1000), (7, 7), ("5B", 5), ("512KiB", 524288), ("100MiB", 104857600)),
        *(("1GiB", 2**30), ("1.5 GiB", 3 * 2**29), (" 2TiB ", 2**41)),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1GB", "1gib", "1 G", "1e9", "nan", "\u0663MiB", "1" * 16, True, None, []]
)
def test_an_invalid_size_is_refused_with_the_valid_form(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write 512KiB"):
        parse_size(text)


def test_a_refusal_does_not_repeat_a_long_text() -> None:
    with pytest.raises(ValueError, match="is not a duration") as refused:
        parse_duration("x" * 10_000)
    assert len(str(refused.value)) < 200


def test_options_and_environment_set_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SERVER_DATABASE_URL", URL)
    monkeypatch.setenv("STREAM_SERVER_POLL_INTERVAL", "250ms")
    monkeypatch.setenv("STREAM_SERVER_PORT", "1")
    settings = Settings.load(port=8091, host=None)
    assert settings.database_url.get_secret_value() == URL
    assert (settings.port, settings.host, settings.poll_interval) == (8091, "127.0.0.1", 0.25)


def test_a_list_has_commas_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SERVER_CORS_ORIGINS", "https://app.example.com, http://localhost:8000")
    assert Settings.load(database_url=URL).cors_origins == ("https://app.example.com", "http://localhost:8000")
    monkeypatch.setenv("STREAM_SERVER_CORS_ORIGINS", "")
    assert Settings.load(database_url=URL).cors_origins == ()


@pytest.mark.parametrize(
    "value",
    [
        *("app.example.com", "https://app.example.com/", "ftp://h", "[", '["https://h"]'),
        *("https://user@h", "https://m\u00fcnchen.example"),
    ],
)
def test_an_invalid_origin_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("STREAM_SERVER_CORS_ORIGINS", value)
    with pytest.raises(SettingsError, match="STREAM_SERVER_CORS_ORIGINS"):
        Settings.load(database_url=URL)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="STREAM_SERVER_DATABASE_URL: Field required"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("port", 70000), ("port", -1), ("port", "http"), ("auth", "airflw"), ("log_level", "loud")),
        *(
            ("poll_interval", "0s"),
            ("poll_interval", "soon"),
            ("ping_interval", "0"),
            ("ping_interval", "31s"),
            ("grace_period", "-1s"),
        ),
        *(("pool_size", 0), ("max_queued_bytes", 10), ("max_result_bytes", -1)),
    ],
)
def test_an_invalid_value_is_reported_with_its_setting(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"{ENV_PREFIX}{name.upper()}: "):
        Settings.load(database_url=URL, **{name: value})


def test_all_invalid_settings_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(port="x", pool_size="y")
    assert [part.split(":")[0] for part in str(refused.value).split("; ")] == [
        *("STREAM_SERVER_DATABASE_URL", "STREAM_SERVER_PORT", "STREAM_SERVER_POOL_SIZE")
    ]


@given(st.text(min_size=1).map(lambda text: f"<{text}>"), st.sampled_from(["port", "auth", "pool_size"]))
def test_an_error_never_contains_the_password(password: str, wrong: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(database_url=f"postgresql://u:{password}@h/db", **{wrong: "nonsense"})
    assert password not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@given(st.text(min_size=1).map(lambda text: f"<{text}>"))
def test_settings_can_be_printed_without_the_password(password: str) -> None:
    settings = Settings.load(database_url=f"postgresql://u:{password}@h/db")
    assert password not in repr(settings) + str(settings) + settings.model_dump_json()


def test_settings_do_not_change() -> None:
    settings = Settings.load(database_url=URL)
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize("auth", [None, "none"])
def test_auth_none_needs_loopback_or_an_explicit_choice(auth: str | None) -> None:
    settings = Settings.load(database_url=URL, auth=auth)
    settings.check_auth_choice(loopback=True)
    with pytest.raises(SettingsError, match="--i-know-that-everybody-can-read-everything"):
        settings.check_auth_choice(loopback=False)
    knowing = Settings.load(database_url=URL, auth=auth, i_know_that_everybody_can_read_everything=True)
    knowing.check_auth_choice(loopback=False)


def test_auth_is_airflow_where_its_url_is_set() -> None:
    assert Settings.load(database_url=URL, airflow_url="http://airflow").uses_airflow_auth
    assert not Settings.load(database_url=URL, airflow_url="http://airflow", auth="none").uses_airflow_auth
    assert not Settings.load(database_url=URL).uses_airflow_auth


@pytest.mark.parametrize("loopback", [True, False])
def test_auth_airflow_needs_the_url_of_airflow(*, loopback: bool) -> None:
    with pytest.raises(SettingsError, match="needs --airflow-url"):
        Settings.load(database_url=URL, auth="airflow").check_auth_choice(loopback=loopback)
    Settings.load(database_url=URL, airflow_url="http://airflow").check_auth_choice(loopback=loopback)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.1.2.3", True), ("localhost", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False)),
    ],
)
def test_loopback(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("address", ["localhost:8080", "ftp://h", "http://", "http://ada:s3cret@h", "http://h?x=1", ""])
def test_the_url_of_airflow_must_not_contain_credentials(address: str) -> None:
    with pytest.raises(SettingsError, match=r"AIRFLOW_URL: .*this is not an address") as wrong:
        Settings.load(database_url=URL, airflow_url=address)
    assert "s3cret" not in str(wrong.value)
    assert Settings.load(database_url=URL, airflow_url="https://h:8080/airflow").airflow_url == "https://h:8080/airflow"

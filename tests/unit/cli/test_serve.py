"""The options of `serve` and the settings of the same names."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import typer

from stream_server.cli import serve
from stream_server.cli.main import app, main
from stream_server.settings import Settings

PLURALS = {"cors_origin": "cors_origins", "trusted_proxy": "trusted_proxies"}
"""Options that are repeatable; the setting has the plural."""

VALUES = {
    "database_url": "postgresql://airflow@db/airflow",
    "host": "::1",
    "port": "1",
    "admin_host": "::1",
    "admin_port": "2",
    "trusted_proxy": "10.0.0.0/8",
    "workers": "3",
    "auth": "none",
    "auth_cache": "4s",
    "auth_grace": "5s",
    "airflow_url": "http://airflow:8080",
    "cors_origin": "https://app.example.com",
    "airflow_ui_url": "http://airflow.example.com",
    "poll_interval": "6s",
    "ping_interval": "7s",
    "max_connection_age": "8s",
    "retention": "9s",
    "retention_size": "10KiB",
    "grace_period": "11s",
    "log_level": "debug",
}
"""For each option with a value, one that is not the default."""

FLAGS = {"i_know_that_everybody_can_read_everything": True, "web": False}


def serve_options() -> dict[str, Any]:
    """Return the parameters of the command by name."""
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {parameter.name: parameter for parameter in command.params if parameter.name != "help"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings of each server that the command would run."""
    settings: list[Settings] = []
    monkeypatch.setattr(serve, "run", settings.append)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STREAM_SERVER_{name.upper()}", raising=False)
    return settings


def run_serve(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["stream-server", "serve", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    assert not exited.value.code


def test_every_option_has_a_setting() -> None:
    assert serve_options().keys() == VALUES.keys() | FLAGS.keys()
    assert {PLURALS.get(name, name) for name in serve_options()} <= Settings.model_fields.keys()


@pytest.mark.parametrize("name", sorted(VALUES))
def test_option_sets_its_setting(name: str, served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    database = [] if name == "database_url" else ["--database-url", VALUES["database_url"]]
    option = f"--{name.replace('_', '-')}"
    run_serve(monkeypatch, *database, option, VALUES[name])
    setting = PLURALS.get(name, name)
    expected = Settings.load(**{"database_url": VALUES["database_url"], setting: VALUES[name]})
    assert served == [expected]
    default = Settings.load(database_url="postgresql://other@db/airflow")
    assert getattr(expected, setting) != getattr(default, setting)


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_flag_sets_its_setting(name: str, served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    option = f"--{name.replace('_', '-')}" if FLAGS[name] else f"--no-{name}"
    run_serve(monkeypatch, "--database-url", VALUES["database_url"], option)
    assert [getattr(settings, name) for settings in served] == [FLAGS[name]]
    assert Settings.model_fields[name].default is not FLAGS[name]


def test_missing_options_are_read_from_the_environment(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SERVER_DATABASE_URL", VALUES["database_url"])
    for name, value in VALUES.items():
        monkeypatch.setenv(f"STREAM_SERVER_{PLURALS.get(name, name).upper()}", value)
    run_serve(monkeypatch)
    assert served == [Settings.load()]
    assert served[0].retention == 9


@pytest.mark.parametrize("name", sorted(VALUES))
def test_help_has_the_default_of_the_setting(name: str) -> None:
    found = re.search(r"\[default: (.+)\]", serve_options()[name].help)
    field = Settings.model_fields[PLURALS.get(name, name)]
    if found is None:
        assert field.is_required() or not field.default
    else:
        documented = Settings.load(**{"database_url": VALUES["database_url"], name: found[1]})
        assert getattr(documented, name) == field.default

"""Options that several commands share, and checks of their values."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Annotated

import typer

from stream_server.cli.exit import ExitCode, exit_with_error, print_message
from stream_server.errors import SettingsError
from stream_server.settings import ENV_PREFIX, parse_duration
from stream_server.urls import DatabaseUrl, add_password_source, are_valid_hosts, split_url

DatabaseUrlOption = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV_PREFIX}DATABASE_URL",
        help="Airflow's metadata database. SQLAlchemy URLs such as postgresql+psycopg2:// are accepted.",
        show_envvar=True,
    ),
]
Url = Annotated[str, typer.Option(envvar=f"{ENV_PREFIX}URL", help="Address of stream_server.")]
AirflowUrl = Annotated[str, typer.Option(envvar=f"{ENV_PREFIX}AIRFLOW_URL", help="Address of Airflow's API server.")]
Token = Annotated[str | None, typer.Option(envvar=f"{ENV_PREFIX}TOKEN", help="Bearer token for Airflow's REST API.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def require_database_url(database_url: str) -> str:
    """Return the URL with the source of its password, which the environment may name."""
    if not database_url:
        exit_with_error(f"set --database-url or {ENV_PREFIX}DATABASE_URL", ExitCode.USAGE)
    file, command = (os.environ.get(f"{ENV_PREFIX}DATABASE_PASSWORD_{kind}") for kind in ("FILE", "COMMAND"))
    url = add_password_source(database_url, file, command)
    with suppress(SettingsError):
        # A wrong URL is reported where it is used.
        if unsupported := DatabaseUrl.parse(url).unsupported:
            print_message(f"stream-server: these options of the database URL are ignored: {', '.join(unsupported)}")
    return url


def require_host_and_port(option: str, url: str) -> None:
    """Exit unless an address has a host. The error text does not contain the address, which may have a password."""
    if not are_valid_hosts(split_url(url if "://" in url else f"http://{url}")["hosts"]):
        exit_with_error(f"{option} is not an address; expected http://host:port", ExitCode.USAGE)


def parse_duration_option(text: str) -> float:
    """Return a duration in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        exit_with_error(str(error), ExitCode.USAGE)

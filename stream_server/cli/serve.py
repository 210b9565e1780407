"""The command `serve`. Each option sets the setting of the same name; `None` leaves it to the environment."""

from __future__ import annotations

from typing import Annotated

import typer

from stream_server.cli.exit import ExitCode, exit_with_error
from stream_server.errors import StreamServerError
from stream_server.settings import ENV_PREFIX, Settings

DatabaseUrlOption = Annotated[
    str | None, typer.Option(envvar=f"{ENV_PREFIX}DATABASE_URL", help="Airflow's metadata database.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 uses a free one.  [default: 8090]")]
AdminHost = Annotated[str | None, typer.Option(help="Address of the operator port.  [default: 127.0.0.1]")]
AdminPort = Annotated[int | None, typer.Option(help="Separate port for metrics, health and API descriptions.")]
TrustedProxy = Annotated[
    list[str] | None, typer.Option(help="Proxy whose X-Forwarded-For header is trusted; repeatable.")
]
Workers = Annotated[int | None, typer.Option(help="Number of worker processes.  [default: 1]")]
Auth = Annotated[
    str | None,
    typer.Option(
        help="'airflow': Airflow decides what a caller may read; the default with --airflow-url."
        " 'none': every caller may read everything; on loopback only."
    ),
]
AllowNoAuth = Annotated[
    bool | None,
    typer.Option("--i-know-that-everybody-can-read-everything", help="Allow 'none' on an address other than loopback."),
]
AuthCache = Annotated[str | None, typer.Option(help="How long permissions from Airflow are cached.  [default: 30s]")]
AuthGrace = Annotated[
    str | None, typer.Option(help="How long streams continue while Airflow is unreachable.  [default: 5m]")
]
AirflowUrl = Annotated[str | None, typer.Option(help="Address of Airflow's API server.")]
AirflowUiUrl = Annotated[str | None, typer.Option(help="Address of Airflow's UI for browsers, for links.")]
CorsOrigin = Annotated[list[str] | None, typer.Option(help="Origin whose pages may read streams; repeatable.")]
Web = Annotated[
    bool | None, typer.Option("--web/--no-web", help="Serve the run page and the chat page.  [default: web]")
]
PollInterval = Annotated[str | None, typer.Option(help="Polling interval without notifications.  [default: 2s]")]
PingInterval = Annotated[str | None, typer.Option(help="Longest silence of a stream; at most 30s.  [default: 15s]")]
MaxConnectionAge = Annotated[str | None, typer.Option(help="Longest lifetime of a connection; 0: unlimited.")]
Retention = Annotated[
    str | None, typer.Option(help="Age at which rows of the journal are deleted; 0: never.  [default: 24h]")
]
RetentionSize = Annotated[
    str | None,
    typer.Option(
        help="Size of the journal, such as 1GiB, from which on the oldest rows are deleted; 0: unlimited.  [default: 0]"
    ),
]
GracePeriod = Annotated[str | None, typer.Option(help="Longest duration of a shutdown.  [default: 10s]")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")]


def serve(
    *,
    database_url: DatabaseUrlOption = None,
    host: Host = None,
    port: Port = None,
    admin_host: AdminHost = None,
    admin_port: AdminPort = None,
    trusted_proxy: TrustedProxy = None,
    workers: Workers = None,
    auth: Auth = None,
    i_know_that_everybody_can_read_everything: AllowNoAuth = None,
    auth_cache: AuthCache = None,
    auth_grace: AuthGrace = None,
    airflow_url: AirflowUrl = None,
    cors_origin: CorsOrigin = None,
    airflow_ui_url: AirflowUiUrl = None,
    web: Web = None,
    poll_interval: PollInterval = None,
    ping_interval: PingInterval = None,
    max_connection_age: MaxConnectionAge = None,
    retention: Retention = None,
    retention_size: RetentionSize = None,
    grace_period: GracePeriod = None,
    log_level: LogLevel = None,
) -> None:
    """Serve streams until stopped. Environment variables STREAM_SERVER_… set the same options, and further settings."""
    options = {
        "database_url": database_url,
        "host": host,
        "port": port,
        "admin_host": admin_host,
        "admin_port": admin_port,
        "trusted_proxies": trusted_proxy or None,
        "workers": workers,
        "auth": auth,
        "i_know_that_everybody_can_read_everything": i_know_that_everybody_can_read_everything,
        "auth_cache": auth_cache,
        "auth_grace": auth_grace,
        "airflow_url": airflow_url,
        "cors_origins": cors_origin or None,
        "airflow_ui_url": airflow_ui_url,
        "web": web,
        "poll_interval": poll_interval,
        "ping_interval": ping_interval,
        "max_connection_age": max_connection_age,
        "retention": retention,
        "retention_size": retention_size,
        "grace_period": grace_period,
        "log_level": log_level,
    }
    try:
        run(Settings.load(**options))
    except StreamServerError as error:
        exit_with_error(str(error), ExitCode.USAGE)


def run(settings: Settings) -> None:
    """Run the server until it is stopped.

    Raises:
        StreamServerError: The settings are invalid.
    """
    from stream_server.server import main as server  # noqa: PLC0415 # slow to import, and the other commands don't need it
    from stream_server.server.workers.supervisor import run_supervisor  # noqa: PLC0415

    server.check_settings(settings)
    if settings.workers == 1:
        server.run_server(settings)
    else:
        run_supervisor(settings)

"""Settings of `stream-server serve`: options of the command, or environment variables with the same names."""

from __future__ import annotations

import re
import string
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stream_server.errors import SettingsError
from stream_server.urls import Origin, add_password_source

ENV_PREFIX = "STREAM_SERVER_"

ENVIRONMENT = "environment"
"""Value of `airflow_proxy`."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: object) -> float:
    """Return the seconds of a duration: `500ms`, `5s`, `2m`, `1h`, or plain seconds.

    Raises:
        ValueError: The text is not a duration.
    """
    match = _DURATION.fullmatch(str(text).strip(string.whitespace))
    if match is None:
        raise ValueError(f"{str(text)[:40]!r} is not a duration; write 500ms, 5s, 2m, 1h or plain seconds")
    return float(match[1]) * _UNITS[match[2]]


Duration = Annotated[float, BeforeValidator(parse_duration)]

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(B|KiB|MiB|GiB|TiB|)", re.ASCII)
_SIZE_UNITS = {"B": 1, "": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(text: object) -> int:
    """Return the bytes of a size: `512KiB`, `100MiB`, `1.5GiB`, or plain bytes.

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(str(text).strip(string.whitespace))
    if match is None:
        raise ValueError(f"{str(text)[:40]!r} is not a size; write 512KiB, 100MiB, 1.5GiB or plain bytes")
    return round(float(match[1]) * _SIZE_UNITS[match[2]])


Size = Annotated[int, BeforeValidator(parse_size)]


def _split_list(value: object) -> object:
    return [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value


def _check_origin(text: str) -> str:
    origin = Origin.parse(text)
    if text != "*" and (origin is None or origin.scheme not in ("http", "https") or text != str(origin)):
        raise ValueError(f"{text[:100]!r} is not an origin; write https://app.example.com, without a path")
    return text


AllowedOrigin = Annotated[str, AfterValidator(_check_origin)]
"""Scheme, host and port of a page (RFC 6454), or `*` for all."""


def _check_address(text: str) -> str:
    parts = urlsplit(text)
    # A user name and password would replace the credentials of every caller.
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("this is not an address; write https://airflow.example.com:8080, without user and password")
    return text


def _check_network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not an address or a network; write 10.0.0.7 or 10.0.0.0/8") from None
    return text


def _check_host_name(text: str) -> str:
    if re.fullmatch(r"\*|[A-Za-z0-9._-]+", text) is None:
        raise ValueError(f"{text[:60]!r} is not the name of a host; write stream.example.com, without a port, or *")
    return text.lower().rstrip(".")


def _check_header_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", text) is None or text == "*":
        raise ValueError(f"{text[:60]!r} is not the name of a header; write X-Request-ID")
    return text


def _check_proxy(text: str) -> str:
    parts = urlsplit(text)
    if text != ENVIRONMENT and (parts.scheme not in {"http", "https"} or not parts.hostname):
        # The value may contain a password, so that it is not repeated.
        raise ValueError(f"this is not the address of a proxy; write http://proxy.example.com:3128 or {ENVIRONMENT}")
    return text


class Settings(BaseSettings):
    """All settings of the server, frozen. `docs/settings.md` describes them; a test compares both."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    database_url: SecretStr
    """URL of Airflow's metadata database (PostgreSQL). SQLAlchemy URLs are accepted."""

    database_password_file: str | None = None
    """File with the password of the database role. It is read for each new connection."""

    database_password_command: SecretStr | None = None
    """Command that prints the password of the database role. It runs for each new connection, without a shell."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8090, ge=0, le=65535)
    """Port to listen on; 0 selects a free one."""

    url_prefix: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """Path below which a proxy serves this server and Airflow's API: `/airflow`."""

    workers: int = Field(default=1, ge=1)
    """Number of processes that serve requests."""

    auth: Literal["airflow", "none"] | None = None
    """What decides what a caller may see. `airflow`: Airflow's API, the default if its address is set. `none`: every
    caller may read everything."""

    i_know_that_everybody_can_read_everything: bool = False
    """Allow `none` on addresses that other machines can reach."""

    auth_cache: Duration = Field(default=30.0, gt=0)
    """How long a permission answer from Airflow is cached. Permissions of open streams are checked again at this
    interval."""

    auth_grace: Duration = Field(default=300.0, ge=0)
    """How long open streams continue while Airflow does not answer permission checks."""

    airflow_url: Annotated[str, AfterValidator(_check_address)] | None = None
    """Address of Airflow's API server."""

    airflow_proxy: Annotated[SecretStr, BeforeValidator(_check_proxy)] | None = None
    """HTTP proxy for requests to Airflow's API: its address, or `environment` for that of HTTP_PROXY, HTTPS_PROXY and
    NO_PROXY. By default these variables are ignored."""

    api_keys_file: str | None = None
    """File of API keys for chat clients, each with its Airflow account. It is read again when it has changed."""

    airflow_ui_url: Annotated[str, AfterValidator(_check_address)] | None = None
    """Address of Airflow's UI as browsers reach it, for links; without it there are no links."""

    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_check_host_name)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Host names, besides loopback names and IP addresses, for which requests are answered where no credential is
    needed: with `none`, and on `admin_port`. `*` allows all. Separate several with commas."""

    cors_origins: Annotated[tuple[AllowedOrigin, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Origins whose pages may read streams: `https://app.example.com`. Separate several with commas."""

    cors_headers: Annotated[
        tuple[Annotated[str, AfterValidator(_check_header_name)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Further request headers that those pages may send: `X-Request-ID`. Separate several with commas."""

    web: bool = True
    """Whether to serve the run page and the chat page."""

    admin_host: str = "127.0.0.1"
    """Address to listen on for operators, if `admin_port` is set."""

    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """Separate port for metrics, health and API descriptions, which are then not served on `port`; 0 selects a free
    one."""

    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_network)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` header is trusted."""

    max_connections: int = Field(default=50_000, ge=1)
    """Maximum connections per process; further requests get 503."""

    max_connections_per_address: int = Field(default=2000, ge=1)
    """Maximum connections of one address, per process. Loopback addresses and trusted proxies have no limit."""

    max_streams_per_caller: int = Field(default=1000, ge=1)
    """Maximum streams and waiting requests of one caller."""

    max_joins_per_second: float = Field(default=100.0, gt=0)
    """Maximum requests and subscriptions that one caller starts per second, with bursts of ten times as many."""

    ticket_ttl: Duration = Field(default=30.0, gt=0, le=3600.0)
    """How long a ticket is valid."""

    max_tickets_per_caller: int = Field(default=100, ge=1)
    """Maximum unused tickets of one caller."""

    request_timeout: Duration = Field(default=15.0, gt=0)
    """Maximum time to receive a request, from its first byte to the end of its body."""

    max_url_bytes: int = Field(default=16 * 1024, ge=256)
    """Maximum length of a URL; longer ones are refused."""

    max_headers: int = Field(default=100, ge=10)
    """Maximum number of headers of a request; requests with more are refused."""

    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Maximum size of all headers of a request; requests with larger ones are refused."""

    max_message_bytes: int = Field(default=64 * 1024, ge=256)
    """Maximum size of a message from a WebSocket client; larger ones close the connection."""

    idle_timeout: Duration = Field(default=60.0, gt=0)
    """How long a multiplexed WebSocket may stay open without a stream."""

    poll_interval: Duration = Field(default=2.0, gt=0)
    """How often to poll the journal when no notification arrives."""

    check_interval: Duration = Field(default=30.0, gt=0)
    """How often to check the triggers; missing ones are installed again."""

    retention: Duration = Field(default=24 * 3600.0, ge=0)
    """Age after which journal rows are deleted; 0 keeps them forever."""

    retention_size: Size = Field(default=0, ge=0)
    """Size of the journal, in bytes, above which its oldest rows are deleted; 0 sets no limit."""

    ping_interval: Duration = Field(default=15.0, gt=0, le=30.0)
    """How long a stream may be silent before a `ping` frame is sent. Clients give up a silent connection after 45 s,
    and proxies after 60 s."""

    max_connection_age: Duration = Field(default=0.0, ge=0)
    """Maximum age of a stream's connection; 0 sets no limit."""

    pool_size: int = Field(default=4, ge=1)
    """Maximum database connections for reading runs, in addition to the two that follow the journal."""

    max_result_bytes: int = Field(default=960 * 1024, ge=0)
    """Maximum size of all return values of a result together; beyond it the largest are sent as references. Many
    WebSocket clients refuse messages of more than 1 MiB, and a message has more than the values."""

    max_output_bytes: int = Field(default=1024 * 1024, ge=0)
    """How much task output is kept per run for new clients, in bytes; the oldest output is dropped first."""

    max_queued_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Bytes that may be queued for a slow client before its connection is closed."""

    airflow_timeout: Duration = Field(default=30.0, gt=0)
    """Maximum time to wait for a response of Airflow's API."""

    idempotency_ttl: Duration = Field(default=24 * 3600.0, gt=0)
    """How long an `Idempotency-Key` is remembered."""

    mcp_wait: Duration = Field(default=50.0, gt=0)
    """How long a call of a tool waits for a result; then the agent gets the URI of the run, to wait again."""

    mcp_authorization_servers: Annotated[
        tuple[Annotated[str, AfterValidator(_check_address)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Authorization servers whose tokens Airflow accepts, for agents that get tokens themselves. Separate several with
    commas."""

    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    """Maximum size of a request body; larger ones are refused."""

    max_subscriptions: int = Field(default=100, ge=1)
    """Maximum streams on one WebSocket connection."""

    grace_period: Duration = Field(default=10.0, ge=0)
    """Longest duration of a shutdown: streams and all other requests end within this time."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""

    @classmethod
    def load(cls, **options: object) -> Settings:
        """Return the settings from options and environment variables. An option that is `None` counts as not given.

        Raises:
            SettingsError: A setting is missing or invalid. The text names it, and never contains a secret.
        """
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            problems = "; ".join(
                f"{ENV_PREFIX}{str(item['loc'][0]).upper() if item['loc'] else ''}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise SettingsError(problems) from None

    @property
    def database_address(self) -> str:
        """URL of the database, with the source of its password."""
        command = self.database_password_command
        return add_password_source(
            self.database_url.get_secret_value(),
            self.database_password_file,
            None if command is None else command.get_secret_value(),
        )

    @property
    def uses_airflow_auth(self) -> bool:
        """Whether Airflow decides what a caller may see."""
        return self.auth == "airflow" or (self.auth is None and self.airflow_url is not None)

    def unauthenticated_hosts(self, listening_on: str) -> tuple[str, ...]:
        """Return the names of hosts that are allowed where no credential is needed, on a port of this address."""
        return (*self.allowed_hosts, listening_on.lower())

    def check_auth_choice(self, *, loopback: bool) -> None:
        """Raise if every caller could read everything without that being chosen.

        Args:
            loopback: Whether only this machine can connect; then no choice is needed.

        Raises:
            SettingsError: No authorization was chosen, or Airflow's address is missing.
        """
        if self.uses_airflow_auth and self.airflow_url is None:
            raise SettingsError(f"--auth airflow needs --airflow-url ({ENV_PREFIX}AIRFLOW_URL)")
        if not self.uses_airflow_auth and not loopback and not self.i_know_that_everybody_can_read_everything:
            raise SettingsError(
                "Without authorization, everyone who can connect can read everything, so the server only listens on"
                f" loopback addresses. Set --airflow-url ({ENV_PREFIX}AIRFLOW_URL) so that Airflow authorizes callers,"
                " or confirm with --i-know-that-everybody-can-read-everything"
            )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

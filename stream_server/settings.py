"""The settings of `stream-server serve`: options of the command, or environment variables with the same names."""

from __future__ import annotations

import re
import string
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stream_server.errors import SettingsError
from stream_server.urls import Origin

ENV_PREFIX = "STREAM_SERVER_"
"""Prefix of the environment variables."""

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|m|h|)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: object) -> float:
    """Read a duration: `500ms`, `5s`, `2m`, `1h`, or plain seconds.

    Raises:
        ValueError: The text is no duration.
    """
    match = _DURATION.fullmatch(str(text).strip(string.whitespace))
    if match is None:
        raise ValueError(f"{str(text)[:40]!r} is not a duration; write 500ms, 5s, 2m, 1h or plain seconds")
    return float(match[1]) * _UNITS[match[2]]


Duration = Annotated[float, BeforeValidator(parse_duration)]

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*(B|KiB|MiB|GiB|TiB|)", re.ASCII)
_SIZE_UNITS = {"B": 1, "": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def parse_size(text: object) -> int:
    """Read a size: `512KiB`, `100MiB`, `1.5GiB`, or plain bytes.

    Raises:
        ValueError: The text is no size.
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
    # A name and a password would take the place of every caller's own.
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("this is no address; write https://airflow.example.com:8080, without user and password")
    return text


def _check_network(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is no address and no network; write 10.0.0.7 or 10.0.0.0/8") from None
    return text


class Settings(BaseSettings):
    """All settings of the server, frozen. `docs/settings.md` describes them, and a test sees to it."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    database_url: SecretStr
    """Airflow's metadata database, PostgreSQL. SQLAlchemy's forms are accepted."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8090, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""

    workers: int = Field(default=1, ge=1)
    """Processes that serve."""

    auth: Literal["airflow", "none"] | None = None
    """Who decides what a caller may see. `airflow`: Airflow, the default where its address is known. `none`: everybody
    may read everything."""

    i_know_that_everybody_can_read_everything: bool = False
    """Allows `none` on addresses that others can reach."""

    auth_cache: Duration = Field(default=30.0, gt=0)
    """How long an answer of Airflow's is good, and after which it is asked for again while a stream lives."""

    auth_grace: Duration = Field(default=300.0, ge=0)
    """How long streams go on where Airflow can't be asked."""

    airflow_url: Annotated[str, AfterValidator(_check_address)] | None = None
    """Address of Airflow's API server."""

    airflow_ui_url: Annotated[str, AfterValidator(_check_address)] | None = None
    """Address of Airflow's pages as browsers reach them, for links; by default there are none."""

    cors_origins: Annotated[tuple[AllowedOrigin, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Origins whose pages may read streams: `https://app.example.com`. In the environment, with commas between."""

    web: bool = True
    """Whether to serve the run page and the chat page."""

    admin_host: str = "127.0.0.1"
    """Address on which operators are answered, where they have a port of their own."""

    admin_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of their own for metrics, health and descriptions, which `port` does not answer then; 0 takes a free one."""

    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_network)], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Proxies whose `X-Forwarded-For` says where a client is, as addresses or networks."""

    max_connections: int = Field(default=50_000, ge=1)
    """Connections of one process; beyond that, who asks for something gets 503."""

    max_streams_per_caller: int = Field(default=1000, ge=1)
    """Streams and waiting requests of one caller."""

    max_joins_per_second: float = Field(default=100.0, gt=0)
    """Requests and subscriptions that one caller may begin in a second; ten times as many at once."""

    ticket_ttl: Duration = Field(default=30.0, gt=0, le=3600.0)
    """How long a ticket is good."""

    max_tickets_per_caller: int = Field(default=100, ge=1)
    """Unused tickets of one caller."""

    request_timeout: Duration = Field(default=15.0, gt=0)
    """How long a request may take to come in, from the first byte to the end of its body."""

    max_url_bytes: int = Field(default=16 * 1024, ge=256)
    """Longer URLs are refused."""

    max_headers: int = Field(default=100, ge=10)
    """Requests with more headers are refused."""

    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Requests with larger headers, all together, are refused."""

    max_message_bytes: int = Field(default=64 * 1024, ge=256)
    """Larger messages of WebSocket clients close their connection."""

    idle_timeout: Duration = Field(default=60.0, gt=0)
    """How long a WebSocket of many streams may have none."""

    poll_interval: Duration = Field(default=2.0, gt=0)
    """How often to look into the journal when no doorbell has rung."""

    check_interval: Duration = Field(default=30.0, gt=0)
    """How often to look whether the triggers stand; those that are missing are put back."""

    retention: Duration = Field(default=24 * 3600.0, ge=0)
    """Age at which rows of the journal are deleted; 0 keeps them for ever."""

    retention_size: Size = Field(default=0, ge=0)
    """Bytes of rows from which on the oldest of the journal are deleted; 0 sets no bound."""

    ping_interval: Duration = Field(default=15.0, gt=0)
    """How long a stream may be silent before a `ping` frame is sent."""

    max_connection_age: Duration = Field(default=0.0, ge=0)
    """How long the connection of a stream may live; 0 sets no bound."""

    pool_size: int = Field(default=4, ge=1)
    """Database connections for joiners, beside the two of the tail."""

    max_result_bytes: int = Field(default=1024 * 1024, ge=0)
    """Return values larger than this are sent as a reference."""

    max_output_bytes: int = Field(default=1024 * 1024, ge=0)
    """Bytes of what the tasks of a run have said that are kept for those who join; the last ones."""

    max_queued_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """Bytes that may wait for a slow client before it is closed."""

    airflow_timeout: Duration = Field(default=30.0, gt=0)
    """How long Airflow's API may take to answer."""

    idempotency_ttl: Duration = Field(default=24 * 3600.0, gt=0)
    """How long an `Idempotency-Key` stands for its run."""

    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    """Larger bodies of requests are refused."""

    max_subscriptions: int = Field(default=100, ge=1)
    """Streams on one WebSocket connection."""

    grace_period: Duration = Field(default=10.0, ge=0)
    """How long clients may take to go when the server shuts down."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""

    @classmethod
    def load(cls, **options: object) -> Settings:
        """Make settings of options and environment; options that are `None` count as not given.

        Raises:
            SettingsError: A setting is missing or wrong. The text says which, and never repeats a secret.
        """
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            wrong = "; ".join(
                f"{ENV_PREFIX}{str(item['loc'][0]).upper() if item['loc'] else ''}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False, include_context=False)
            )
            raise SettingsError(wrong) from None

    @property
    def uses_airflow_auth(self) -> bool:
        """Whether Airflow decides what a caller may see."""
        return self.auth == "airflow" or (self.auth is None and self.airflow_url is not None)

    def check_auth_choice(self, *, loopback: bool) -> None:
        """Refuse to show everything to everybody, unless it was chosen or nobody else can connect.

        Raises:
            SettingsError: No choice was made, or one that can't be.
        """
        if self.uses_airflow_auth and self.airflow_url is None:
            raise SettingsError(f"--auth airflow asks Airflow, so it needs --airflow-url ({ENV_PREFIX}AIRFLOW_URL)")
        if not self.uses_airflow_auth and not loopback and not self.i_know_that_everybody_can_read_everything:
            raise SettingsError(
                "Without authorization everybody who can connect can read everything, so the server listens on"
                f" loopback only. Give --airflow-url ({ENV_PREFIX}AIRFLOW_URL), and Airflow decides who may read what;"
                " or say --i-know-that-everybody-can-read-everything"
            )


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

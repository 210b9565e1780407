"""Making all checks, one after the other, so that none disturbs the figures of another one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import httpx

from stream_server.cli.doctor.http_checks import AirflowChecks, ServerChecks
from stream_server.cli.doctor.journal_checks import JournalChecks
from stream_server.cli.doctor.notify_checks import DoorbellChecks
from stream_server.cli.doctor.postgres_checks import PostgresChecks
from stream_server.cli.doctor.report import Finding, Report, problem, skipped
from stream_server.cli.doctor.session import Session
from stream_server.cli.doctor.thresholds import Limits
from stream_server.errors import (
    JournalForbidden,
    JournalMissing,
    JournalUnreachable,
    SettingsError,
    StreamServerError,
)
from stream_server.urls import secrets

Check = tuple[str, Callable[[], Awaitable[Finding]]]

REMEDIES: dict[type[StreamServerError], str] = {
    JournalForbidden: "run `stream-server install --reader ROLE` for this role, as the role that owns Airflow's tables",
    JournalMissing: "run `stream-server install`",
    JournalUnreachable: (
        "check host, port, user, password and database of the URL, pg_hba.conf, and the way through the network"
    ),
    SettingsError: "mend the URL: postgresql://user:password@host:5432/airflow, as in Airflow's sql_alchemy_conn",
}


@dataclass(frozen=True)
class Subject:
    """What is to be looked at; what is `None` is not."""

    database_url: str | None = None
    airflow_url: str | None = None
    url: str | None = None
    """Address of stream_server, as its clients reach it."""

    token: str | None = None
    """Bearer token of Airflow's API."""

    limits: Limits = field(default_factory=Limits)

    @property
    def secrets(self) -> frozenset[str]:
        """What no text may hold."""
        urls = filter(None, (self.database_url, self.airflow_url, self.url))
        return frozenset({self.token or ""}.union(*map(secrets, urls))) - {""}


async def examine(subject: Subject) -> Report:
    """Make all checks of what there is to look at."""
    report = Report(subject.secrets)
    limits = subject.limits
    if subject.database_url is not None:
        session = Session(subject.database_url, limits.check / 2)
        try:
            await _make(report, database_checks(session, limits), limits)
        finally:
            await session.close()
    if subject.airflow_url is not None:
        async with _client(subject.airflow_url, limits) as client:
            await _make(report, airflow_checks(client, subject.token), limits)
    if subject.url is not None:
        async with _client(subject.url, limits) as client:
            await _make(report, server_checks(client, subject.token), limits)
    return report


def database_checks(session: Session, limits: Limits) -> list[Check]:
    """Return the checks of a database."""
    postgres = PostgresChecks(session, limits)
    journal = JournalChecks(session, limits)
    doorbell = DoorbellChecks(session, limits)
    return [
        ("connection", postgres.connection),
        ("primary", postgres.primary),
        ("pooler", doorbell.pooler),
        ("doorbell", doorbell.doorbell),
        ("airflow", journal.airflow),
        ("privileges", journal.privileges),
        ("triggers", journal.triggers),
        ("lag", journal.lag),
        ("size", journal.size),
        ("queue", postgres.queue),
        ("transactions", postgres.transactions),
        ("two-phase", postgres.two_phase),
        ("connections", postgres.connections),
        ("clock", postgres.clock),
    ]


def airflow_checks(client: httpx.AsyncClient, token: str | None) -> list[Check]:
    """Return the checks of Airflow's API."""
    airflow = AirflowChecks(client, token)
    return [("airflow-api", airflow.api), *([] if token is None else [("token", airflow.token)])]


def server_checks(client: httpx.AsyncClient, token: str | None) -> list[Check]:
    """Return the checks of stream_server, and of what is in front of it."""
    server = ServerChecks(client, token)
    return [("server", server.server), ("buffering", server.buffering), ("websocket", server.websocket)]


async def _make(report: Report, checks: list[Check], limits: Limits) -> None:
    """Make checks. Where the first one finds that nothing answers, the others can't be made."""
    for name, ask in checks:
        first = report.get(checks[0][0])
        if first is not None and first.facts.get("answers") is False:
            report.add(name, skipped(f"see the check `{checks[0][0]}`"))
        else:
            report.add(name, await _made(ask, limits.check))


async def _made(ask: Callable[[], Awaitable[Finding]], limit: float) -> Finding:
    """Make one check; whatever happens to it, the others are made as well."""
    try:
        with anyio.fail_after(limit):
            return await ask()
    except (TimeoutError, asyncio.TimeoutError):
        return problem(f"no answer within {limit:g} s", "see whether something is locked or overloaded, and try again")
    except StreamServerError as error:
        remedy = next((text for kind, text in REMEDIES.items() if isinstance(error, kind)), "see docs/errors.md")
        answers = not isinstance(error, (JournalUnreachable, SettingsError))
        return problem(str(error), remedy, answers=answers)
    except Exception as error:  # noqa: BLE001 # a fault of one check must not hide what the others find
        return problem(f"the check itself failed ({type(error).__name__}: {error})", "please report it")


def _client(url: str, limits: Limits) -> httpx.AsyncClient:
    """Return a client for an address; where it is none, every request of it says so."""
    try:
        return httpx.AsyncClient(base_url=url, timeout=limits.check / 2)
    except httpx.InvalidURL:
        return httpx.AsyncClient(base_url="invalid://", timeout=limits.check / 2)

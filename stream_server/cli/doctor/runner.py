"""Runs all checks, one after another, so that none affects the measurements of another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import httpx

from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.http_checks import AirflowChecks, ServerChecks
from stream_server.cli.doctor.journal_checks import JournalChecks
from stream_server.cli.doctor.notify_checks import NotifyChecks
from stream_server.cli.doctor.postgres_checks import PostgresChecks
from stream_server.cli.doctor.report import DoctorReport, Finding, problem, skipped
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.errors import (
    JournalForbidden,
    JournalMissing,
    JournalUnreachable,
    SettingsError,
    StreamServerError,
)
from stream_server.journal.airflow_tables import AirflowSchemaUnknown
from stream_server.urls import find_secrets

NamedCheck = tuple[str, Callable[[], Awaitable[Finding]]]

REMEDIES: dict[type[StreamServerError], str] = {
    JournalForbidden: "run `stream-server install --reader ROLE` for this role, as the role that owns Airflow's tables",
    AirflowSchemaUnknown: "upgrade stream-server, or finish `airflow db migrate`; see the check `airflow`",
    JournalMissing: "run `stream-server install`",
    JournalUnreachable: ("check host, port, user, password and database of the URL, pg_hba.conf, and the network"),
    SettingsError: "correct the URL: postgresql://user:password@host:5432/airflow, as in Airflow's sql_alchemy_conn",
}


@dataclass(frozen=True)
class DoctorTargets:
    """Addresses to check. No checks run for those that are `None`."""

    database_url: str | None = None
    airflow_url: str | None = None
    url: str | None = None
    """Address of stream_server for its clients."""

    token: str | None = None
    """Bearer token of Airflow's API."""

    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def secrets(self) -> frozenset[str]:
        """Texts to redact in all findings."""
        urls = filter(None, (self.database_url, self.airflow_url, self.url))
        return frozenset({self.token or ""}.union(*map(find_secrets, urls))) - {""}


async def run_checks(subject: DoctorTargets) -> DoctorReport:
    """Run all checks of the given addresses."""
    report = DoctorReport(subject.secrets)
    limits = subject.thresholds
    if subject.database_url is not None:
        session = ReadOnlySession(subject.database_url, limits.check_timeout / 2)
        try:
            await _run_and_report(report, list_database_checks(session, limits), limits)
        finally:
            await session.close()
    if subject.airflow_url is not None:
        async with _make_client(subject.airflow_url, limits) as client:
            await _run_and_report(report, list_airflow_checks(client, subject.token), limits)
    if subject.url is not None:
        async with _make_client(subject.url, limits) as client:
            await _run_and_report(report, list_server_checks(client, subject.token), limits)
    return report


def list_database_checks(session: ReadOnlySession, limits: Thresholds) -> list[NamedCheck]:
    postgres = PostgresChecks(session, limits)
    journal = JournalChecks(session, limits)
    notify = NotifyChecks(session, limits)
    return [
        ("connection", postgres.check_connection),
        ("primary", postgres.check_primary),
        ("pooler", notify.check_pooler),
        ("doorbell", notify.check_notify),
        ("airflow", journal.check_airflow_schema),
        ("privileges", journal.check_privileges),
        ("triggers", journal.check_triggers),
        ("lag", journal.check_lag),
        ("size", journal.check_size),
        ("queue", postgres.check_queue),
        ("transactions", postgres.check_transactions),
        ("two-phase", postgres.check_two_phase),
        ("connections", postgres.check_connections),
        ("clock", postgres.check_clock),
    ]


def list_airflow_checks(client: httpx.AsyncClient, token: str | None) -> list[NamedCheck]:
    airflow = AirflowChecks(client, token)
    return [("airflow-api", airflow.check_api), *([] if token is None else [("token", airflow.check_token)])]


def list_server_checks(client: httpx.AsyncClient, token: str | None) -> list[NamedCheck]:
    server = ServerChecks(client, token)
    return [
        ("server", server.check_server),
        ("buffering", server.check_buffering),
        ("websocket", server.check_websocket),
    ]


async def _run_and_report(report: DoctorReport, checks: list[NamedCheck], limits: Thresholds) -> None:
    """Run checks. If the first one gets no response, skip the others."""
    for name, check in checks:
        first = report.get(checks[0][0])
        if first is not None and first.facts.get("answers") is False:
            report.add(name, skipped(f"see the check `{checks[0][0]}`"))
        else:
            report.add(name, await _run_check(check, limits.check_timeout))


async def _run_check(check: Callable[[], Awaitable[Finding]], limit: float) -> Finding:
    """Run one check. Any exception becomes a finding, so that the other checks run."""
    try:
        with anyio.fail_after(limit):
            return await check()
    except (TimeoutError, asyncio.TimeoutError):
        return problem(f"no result within {limit:g} s", "check for locks and overload, and try again")
    except StreamServerError as error:
        remedy = next((text for kind, text in REMEDIES.items() if isinstance(error, kind)), "see docs/errors.md")
        answers = not isinstance(error, (JournalUnreachable, SettingsError))
        return problem(str(error), remedy, answers=answers)
    except Exception as error:  # noqa: BLE001 # a bug in one check must not hide the findings of others
        return problem(f"the check itself failed ({type(error).__name__}: {error})", "report this as a bug")


def _make_client(url: str, limits: Thresholds) -> httpx.AsyncClient:
    """Return a client for an address. If the address is invalid, each request of the client fails."""
    try:
        return httpx.AsyncClient(base_url=url, timeout=limits.check_timeout / 2)
    except httpx.InvalidURL:
        return httpx.AsyncClient(base_url="invalid://", timeout=limits.check_timeout / 2)

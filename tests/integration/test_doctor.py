"""`stream-server doctor` on working and on broken installations."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.report import Finding, Level
from stream_server.cli.doctor.runner import DoctorTargets, run_checks
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.domain.run_state import RunKey
from stream_server.errors import ReadReplica
from stream_server.journal.installer import disable_triggers
from stream_server.journal.privileges import READER_PRIVILEGES
from support.airflow_sql import ONLY_WITH_TRIES, AirflowSql
from support.pgbouncer import running_pgbouncer
from support.postgres import create_database_from_airflow_template, running_postgres
from support.server import RunningServer
from support.standby import catch_up, running_standby

DATABASE_CHECKS = [
    "connection",
    "primary",
    "pooler",
    "doorbell",
    "airflow",
    "privileges",
    "triggers",
    "lag",
    "size",
    "queue",
    "transactions",
    "two-phase",
    "connections",
    "clock",
]
SERVER_CHECKS = ["server", "buffering", "websocket"]


async def run_doctor(*arguments: str) -> tuple[int | None, str, str]:
    """Return exit code, standard output and standard error of the command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_SERVER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "doctor", *arguments),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode(), errors.decode()


async def run_database_check(check: str, url: str, **limits: float) -> Finding:
    """Return the finding of one check of a database."""
    return await run_check(check, DoctorTargets(database_url=url, thresholds=Thresholds(**limits)))  # type: ignore[arg-type]


async def run_check(check: str, subject: DoctorTargets) -> Finding:
    finding = (await run_checks(subject)).get(check)
    assert finding is not None, f"no finding of {check}"
    return finding


@asynccontextmanager
async def connected(url: str, **options: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(url, server_settings=options)
    try:
        yield connection
    finally:
        await connection.close()


async def test_working_installation_has_only_ok(
    journal: str, airflow: AirflowSql, server: RunningServer, run: RunKey
) -> None:
    code, output, errors = await run_doctor("--database-url", journal, "--url", server.url)
    lines = output.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", check] for check in DATABASE_CHECKS + SERVER_CHECKS], (
        output
    )
    assert lines[-1] == "17 checks: 17 ok"
    assert (code, errors) == (0, "")
    assert re.search(r"doorbell +notifications arrive after \d+\.\d ms", output)
    assert "tables of Airflow 3.3 (migrated to 3.3.0, revision d2f4e1b3c5a7), in schema public" in output
    assert "the first frame after" in output

    code, output, _ = await run_doctor("--json", "--database-url", journal, "--url", server.url)
    decoded = json.loads(output)
    assert (code, decoded["healthy"], decoded["counts"]["ok"]) == (0, True, 17)
    facts = {check["check"]: check["facts"] for check in decoded["checks"]}
    assert facts["triggers"] == {"version": facts["triggers"]["version"], "enabled": True, "losses": 0}
    assert facts["connections"]["ours"] >= 2
    assert facts["queue"]["usage"] == 0
    assert len(facts["buffering"]["gaps_ms"]) == 3


async def test_journal_is_not_installed(airflow_database: str) -> None:
    code, output, _ = await run_doctor("--database-url", airflow_database)
    assert code == 1
    assert re.search(r"^problem +triggers .* -> run `stream-server install`$", output, re.MULTILINE)
    assert re.search(r"^ok +doorbell ", output, re.MULTILINE)
    assert output.splitlines()[-1] == "14 checks: 11 ok, 3 problem"


async def test_triggers_are_disabled(journal: str) -> None:
    await disable_triggers(journal)
    finding = await run_database_check("triggers", journal)
    assert (finding.level, finding.remedy) == (Level.PROBLEM, "run `stream-server triggers enable`")
    assert "disabled" in finding.found


async def test_missing_trigger(journal: str, airflow: AirflowSql) -> None:
    await airflow.connection.execute("DROP TRIGGER stream_server_xcom ON xcom")
    finding = await run_database_check("triggers", journal)
    assert (finding.level, finding.remedy) == (Level.PROBLEM, "run `stream-server install`")
    assert finding.found == "trigger stream_server_xcom on xcom is missing"


async def test_functions_of_another_version(journal: str, airflow: AirflowSql) -> None:
    await airflow.connection.execute("DROP FUNCTION stream_server.release")
    finding = await run_database_check("triggers", journal)
    assert (finding.level, finding.remedy) == (Level.WARNING, "run `stream-server install`")
    assert "another version of stream_server (release)" in finding.found
    await airflow.connection.execute("SELECT nextval('stream_server.losses')")
    finding = await run_database_check("triggers", journal)
    assert "another version of stream_server (release)" in finding.found
    assert "1 changes since their installation were not recorded" in finding.found


async def test_lost_changes(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.connection.execute("ALTER TABLE stream_server.journal ADD CHECK (false) NOT VALID")
    await airflow.set_run(run, "running")
    finding = await run_database_check("triggers", journal)
    assert (finding.level, finding.facts["losses"]) == (Level.WARNING, 1)
    assert "could not record a transition" in (finding.remedy or "")


@pytest.fixture
def unprivileged_url(postgres: EmbeddedPostgres, journal: str) -> Iterator[str]:
    """Database URL of a role without privileges."""
    role = f"unprivileged_{os.getpid()}"
    postgres.execute(f"CREATE ROLE {role} LOGIN")
    yield journal.replace("//airflow@", f"//{role}@")
    postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", database=journal.rpartition("/")[2])


async def test_role_without_privileges(unprivileged_url: str, airflow: AirflowSql) -> None:
    finding = await run_database_check("privileges", unprivileged_url)
    assert finding.level is Level.PROBLEM
    assert finding.facts["missing"] == [
        # PUBLIC has USAGE on the schema `public`.
        f"{grant.privilege} on {grant.kind} {'.'.join(filter(None, (grant.schema or 'public', grant.name)))}"
        for grant in READER_PRIVILEGES
        if (grant.schema or grant.name) and grant.name not in ONLY_WITH_TRIES
    ]
    assert f"run `stream-server install --reader {urlsplit(unprivileged_url).username}`" in (finding.remedy or "")
    triggers = await run_database_check("triggers", unprivileged_url)
    assert (triggers.level, "lacks a privilege" in triggers.found) == (Level.PROBLEM, True)

    role = urlsplit(unprivileged_url).username
    await airflow.connection.execute(f"GRANT USAGE ON SCHEMA stream_server TO {role}")
    assert (
        "USAGE on schema stream_server"
        not in (await run_database_check("privileges", unprivileged_url)).facts["missing"]
    )


async def test_superuser_is_a_warning(postgres: EmbeddedPostgres, journal: str) -> None:
    finding = await run_database_check("privileges", journal.replace("//airflow@", "//postgres@"))
    assert (finding.level, finding.found) == (Level.WARNING, "the role postgres is a superuser")


@pytest.mark.parametrize("ours", [False, True])
async def test_idle_transaction(journal: str, airflow: AirflowSql, *, ours: bool) -> None:
    name = "stream_server" if ours else "report"
    async with connected(journal, application_name=name) as busy, busy.transaction():
        await busy.execute("SELECT pg_current_xact_id()")
        finding = await run_database_check("transactions", journal, max_idle_transaction_age=0)
        assert f"({name}, pid {busy.get_server_pid()})" in finding.found
    assert finding.level is (Level.PROBLEM if ours else Level.WARNING)
    assert ("restart that server" if ours else "pg_terminate_backend") in (finding.remedy or "")


async def test_long_transaction(journal: str) -> None:
    async with connected(journal, application_name="dump") as busy:
        sleeping = asyncio.create_task(busy.execute("SELECT pg_sleep(600)"))
        finding = await run_database_check("transactions", journal, max_transaction_age=0)
        await run_database_check("transactions", journal)
        async with connected(journal) as other:
            await other.fetchval("SELECT pg_cancel_backend($1)", busy.get_server_pid())
        with pytest.raises(asyncpg.QueryCanceledError):
            await sleeping
    assert (finding.level, "(dump, pid" in finding.found) == (Level.WARNING, True)


async def test_writes_without_triggers(
    postgres: EmbeddedPostgres, journal: str, airflow: AirflowSql, run: RunKey
) -> None:
    assert (await run_database_check("lag", journal, max_lag=5)).level is Level.OK
    postgres.execute(
        "SET session_replication_role = replica; UPDATE dag_run SET end_date = now() + interval '1 minute'",
        database=journal.rpartition("/")[2],
    )
    finding = await run_database_check("lag", journal, max_lag=5)
    assert finding.level is Level.PROBLEM
    assert "session_replication_role" in (finding.remedy or "")


async def test_rows_beyond_the_retention(journal: str, airflow: AirflowSql, run: RunKey) -> None:
    await airflow.connection.execute("UPDATE stream_server.journal SET at = at - interval '30 hours'")
    finding = await run_database_check("size", journal)
    assert (finding.level, "the retention is 24 h" in finding.found) == (Level.WARNING, True)
    assert (await run_database_check("size", journal, retention=0)).level is Level.OK
    assert (await run_database_check("size", journal, retention=40 * 3600)).level is Level.OK


async def test_tables_of_an_unknown_airflow(journal: str, airflow: AirflowSql) -> None:
    await airflow.connection.execute("UPDATE alembic_version SET version_num = 'abcdef'")
    assert (await run_database_check("airflow", journal)).level is Level.WARNING
    await airflow.connection.execute("ALTER TABLE xcom RENAME COLUMN value TO contents")
    finding = await run_database_check("airflow", journal)
    assert (finding.level, "missing: xcom.value" in finding.found) == (Level.PROBLEM, True)


async def test_database_without_airflow(postgres: EmbeddedPostgres) -> None:
    finding = await run_database_check("airflow", postgres.url("postgres", "postgres"))
    assert (finding.level, "use the database of Airflow" in (finding.remedy or "")) == (Level.PROBLEM, True)


async def test_connection_limit_of_the_role(postgres: EmbeddedPostgres, unprivileged_url: str) -> None:
    role = urlsplit(unprivileged_url).username
    postgres.execute(f"ALTER ROLE {role} CONNECTION LIMIT 5")
    finding = await run_database_check("connections", unprivileged_url)
    assert (finding.level, finding.facts["most"]) == (Level.WARNING, 5)


async def test_different_clocks(journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = asyncio.get_running_loop().time
    monkeypatch.setattr("stream_server.cli.doctor.postgres_checks.time.time", now)
    finding = await run_database_check("clock", journal)
    assert (finding.level, finding.facts["ahead"] > 1000) == (Level.WARNING, True)


async def test_notify_is_disabled(postgres: EmbeddedPostgres, journal: str) -> None:
    postgres.execute(f"ALTER DATABASE {journal.rpartition('/')[2]} SET stream_server.doorbell = off")
    finding = await run_database_check("doorbell", journal)
    assert (finding.level, "disables" in finding.found) == (Level.WARNING, True)


async def test_two_phase_commit_is_a_warning() -> None:
    with running_postgres({"max_prepared_transactions": "5"}) as postgres:
        url = postgres.url(create_database_from_airflow_template(postgres))
        finding = await run_database_check("two-phase", url)
        assert (finding.level, finding.facts["max_prepared_transactions"]) == (Level.WARNING, 5)
        async with connected(url) as connection:
            await connection.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgotten'")
            finding = await run_database_check("transactions", url, max_transaction_age=0)
            await connection.execute("ROLLBACK PREPARED 'forgotten'")
    assert (finding.level, "prepared transaction forgotten" in finding.found) == (Level.WARNING, True)


async def test_blocked_check_does_not_stop_the_others(journal: str) -> None:
    async with connected(journal) as locker, locker.transaction():
        await locker.execute("LOCK TABLE stream_server.meta IN ACCESS EXCLUSIVE MODE")
        report = await run_checks(DoctorTargets(database_url=journal, thresholds=Thresholds(check_timeout=1.0)))
    blocked = report.get("triggers")
    assert blocked is not None
    assert blocked.level is Level.PROBLEM
    assert [name for name in DATABASE_CHECKS if getattr(report.get(name), "level", None) is Level.OK] == [
        name for name in DATABASE_CHECKS if name not in ("triggers", "lag", "size")
    ]


async def test_session_is_read_only(journal: str) -> None:
    session = ReadOnlySession(journal, 5)
    with pytest.raises(ReadReplica):
        async with session.transaction() as connection:
            await connection.execute("DELETE FROM stream_server.journal")
    async with session.transaction() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await session.close()


async def test_unreachable_services_do_not_stop_other_checks(server: RunningServer, unused_tcp_port: int) -> None:
    unreachable = f"127.0.0.1:{unused_tcp_port}"
    code, output, errors = await run_doctor(
        *("--database-url", f"postgresql://airflow@{unreachable}/airflow", "--airflow-url", f"http://{unreachable}"),
        *("--token", "t", "--url", server.url),
    )
    levels = {line.split()[1]: line.split()[0] for line in output.splitlines()[:-1]}
    assert (code, errors) == (1, "")
    assert levels["connection"] == "problem"
    assert {levels[check] for check in DATABASE_CHECKS[1:]} == {"skipped"}
    assert {levels[check] for check in SERVER_CHECKS} == {"ok"}
    assert re.search(
        r"^problem +airflow-api +no response from http://127\.0\.0\.1:\d+ \(.+ -> set --airf", output, re.MULTILINE
    )
    assert re.search(r"^skipped +token ", output, re.MULTILINE)


PASSWORDS = [
    "postgresql://airflow:{}@127.0.0.1:1/airflow",
    "postgresql+psycopg2://airflow:{}@127.0.0.1:1/airflow?sslmode=nonsense",
    "postgresql://airflow:{}@127.0.0.1:1/airflow?password={}&sslpassword={}",
    "postgresql://airflow@127.0.0.1:1/airflow?port={}",
    "postgresql://airflow@127.0.0.1:1/airflow?sslmode={}",
    "postgresql://airflow:{}",
    "postgresql://airflow:{}/airflow",
    "postgresql://airflow:{}@127.0.0.1:{}/airflow",
    "postgresql://airflow:x@{}@127.0.0.1:1/airflow",
    "postgresql://airflow:x@{}:y/z@127.0.0.1:1/airflow",
    "mysql://airflow:{}@127.0.0.1:1/airflow",
    "host=127.0.0.1 port=1 password={}",
    "{}",
]


@pytest.mark.parametrize("url", PASSWORDS)
async def test_report_contains_no_password_of_the_database(url: str) -> None:
    secret = "s3cr3t-passw0rd"
    subject = DoctorTargets(database_url=url.replace("{}", secret))
    report = await run_checks(subject)
    text = json.dumps(report.as_json()) + "\n".join(report.format_lines())
    assert not report.is_healthy
    assert secret not in text, text
    assert "check itself failed" not in text, text


@pytest.mark.parametrize(
    "url",
    ["http://u:{}@127.0.0.1:1/", "http://u:{}", "http://u:x@{}@127.0.0.1:1", "http://127.0.0.1:1/?token={}", "{}"],
)
async def test_report_contains_no_password_of_an_address(url: str) -> None:
    secret = "s3cr3t-passw0rd"
    address = url.replace("{}", secret)
    report = await run_checks(DoctorTargets(airflow_url=address, url=address, token="t0ken-of-mine"))
    text = json.dumps(report.as_json()) + "\n".join(report.format_lines())
    assert not report.is_healthy
    assert secret not in text, text
    assert "t0ken" not in text
    assert "check itself failed" not in text, text


@pytest.mark.parametrize("size", [1, 4])
async def test_pooler_in_transaction_mode(postgres: EmbeddedPostgres, journal: str, size: int) -> None:
    with running_pgbouncer(postgres, "transaction", pool_size=size) as pooler:
        report = await run_checks(DoctorTargets(database_url=pooler.url(journal)))
    levels = {check: finding.level for check in DATABASE_CHECKS if (finding := report.get(check)) is not None}
    assert {check for check in DATABASE_CHECKS if levels[check] is not Level.OK} == {"pooler", "doorbell"}, (
        report.format_lines()
    )
    for check in ("pooler", "doorbell"):
        finding = report.get(check)
        assert finding is not None
        assert (finding.level, finding.remedy) == (
            Level.PROBLEM,
            "use a URL of PostgreSQL itself, or of a pooler in session mode",
        )


async def test_pooler_in_session_mode(postgres: EmbeddedPostgres, journal: str) -> None:
    with running_pgbouncer(postgres, "session", pool_size=4) as pooler:
        report = await run_checks(DoctorTargets(database_url=pooler.url(journal)))
    assert report.is_healthy, report.format_lines()
    finding = report.get("pooler")
    assert finding is not None
    assert finding.facts == {"pooler": "session"}


async def test_read_replica(postgres: EmbeddedPostgres, journal: str) -> None:
    with running_standby(postgres) as standby:
        catch_up(postgres, standby)
        report = await run_checks(DoctorTargets(database_url=standby.url(journal.rpartition("/")[2])))
    failed = [check for check in DATABASE_CHECKS if (finding := report.get(check)) and finding.level is not Level.OK]
    assert failed == ["primary", "doorbell"], report.format_lines()
    finding = report.get("primary")
    assert finding is not None
    assert "target_session_attrs=read-write" in (finding.remedy or "")


async def test_no_address_is_a_usage_error() -> None:
    code, output, errors = await run_doctor()
    assert (code, output) == (64, "")
    assert errors == "stream-server: set --database-url, --airflow-url or --url\n"

"""Airflow's own database URL works with every option, and passwords may change while a server runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalUnreachable
from stream_server.journal import password_source
from stream_server.journal.connection import close_connection, connect
from stream_server.journal.installer import fetch_status
from stream_server.urls import add_password_source
from support.airflow_sql import AirflowSql
from support.multi_process_server import MultiProcessServer
from support.readiness import wait_until_ready
from support.server import module_process, server_process
from support.streams import DEADLINE, sse, types

OPTIONS = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "1000",
    "channel_binding": "prefer",
    "require_auth": "none",
    "requirepeer": "postgres",
    "gssencmode": "disable",
    "gssdelegation": "0",
    "requiressl": "0",
    "sslcompression": "0",
    "sslcertmode": "allow",
    "sslsni": "1",
    "sslcrldir": "/none",
    "hostaddr": "127.0.0.1",
    "load_balance_hosts": "disable",
    "servicefile": "/none",
    "sslkeylogfile": "/none",
    "min_protocol_version": "3.0",
    "max_protocol_version": "latest",
    "oauth_issuer": "x",
}
"""Options of libpq that asyncpg lacks."""

USED = {
    "connect_timeout": "10",
    "application_name": "airflow",
    "fallback_application_name": "airflow",
    "client_encoding": "utf8",
    "options": "-c%20jit=off",
    "sslmode": "prefer",
    "target_session_attrs": "any",
    "passfile": "/none",
    "sslrootcert": "/none",
    "krbsrvname": "postgres",
}
"""Options that have an effect, or need none."""


def with_options(url: str, options: dict[str, str]) -> str:
    return f"{url}?{'&'.join(f'{name}={value}' for name, value in options.items())}"


@pytest.mark.parametrize("name", [*OPTIONS, *USED])
async def test_every_option_of_libpq_is_accepted(journal: str, name: str) -> None:
    url = with_options(journal.replace("postgresql", "postgresql+psycopg2"), {name: {**OPTIONS, **USED}[name]})
    connection = await connect(url)
    try:
        assert await connection.fetchval("SHOW application_name") == "stream_server"
        if name == "options":
            assert await connection.fetchval("SHOW jit") == "off"
    finally:
        await close_connection(connection)


@asynccontextmanager
async def serving(port: int, workers: int, **environment: str) -> AsyncIterator[MultiProcessServer]:
    """Run `serve`, and keep its log."""
    async with server_process("--port", str(port), "--workers", str(workers), **environment) as process:
        server = MultiProcessServer(process, f"http://127.0.0.1:{port}", None)
        log_reader = asyncio.create_task(server.read_log())
        try:
            await server.wait_until_ready()
            yield server
        finally:
            process.terminate()
            await process.wait()
            await log_reader


@pytest.mark.parametrize("workers", [1, 2])
async def test_ignored_options_are_logged_once(journal: str, unused_tcp_port: int, workers: int) -> None:
    url = with_options(journal, OPTIONS)
    async with serving(unused_tcp_port, workers, STREAM_SERVER_DATABASE_URL=url) as server:
        pass
    (line,) = [line for line in server.log if "options of the database URL are ignored" in line]
    assert all(name in line for name in OPTIONS)


@pytest.mark.parametrize("command", ["install", "status"])
async def test_commands_name_ignored_options(journal: str, command: str) -> None:
    url = with_options(journal, OPTIONS)
    async with module_process("stream_server", command, "--database-url", url) as process:
        assert process.stderr is not None
        errors = (await asyncio.wait_for(process.stderr.read(), DEADLINE)).decode()
        assert await process.wait() == 0
    assert errors.count("are ignored") == 1
    assert "keepalives_idle" in errors


@pytest.fixture
def role(postgres: EmbeddedPostgres, journal: str) -> Iterator[str]:
    """A role that must log in with the password `one`."""
    name = f"rotating_{journal.rpartition('/')[2]}"
    rules = Path(postgres.data_dir) / "pg_hba.conf"
    before = rules.read_text()
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'one' IN ROLE airflow")
    rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{before}")
    postgres.execute("SELECT pg_reload_conf()")
    yield name
    rules.write_text(before)
    postgres.execute("SELECT pg_reload_conf()")
    postgres.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("source", ["file", "command", "PGPASSFILE", "passfile"])
async def test_a_password_may_change(
    postgres: EmbeddedPostgres,
    airflow: AirflowSql,
    run: RunKey,
    journal: str,
    role: str,
    tmp_path: Path,
    unused_tcp_port: int,
    source: str,
    workers: int,
) -> None:
    secret = tmp_path / "secret"
    form = "{}\n" if source in {"file", "command"} else f"127.0.0.1:*:*:{role}:{{}}\n"
    secret.touch(mode=0o600)
    secret.write_text(form.format("one"))
    url = journal.replace("airflow@", f"{role}@")
    environment = {
        "file": {"STREAM_SERVER_DATABASE_PASSWORD_FILE": str(secret)},
        "command": {"STREAM_SERVER_DATABASE_PASSWORD_COMMAND": f"cat '{secret}'"},
        "PGPASSFILE": {"PGPASSFILE": str(secret)},
        "passfile": {},
    }[source]
    if source == "passfile":
        url = f"{url}?passfile={secret}"
    async with (
        serving(unused_tcp_port, workers, STREAM_SERVER_DATABASE_URL=url, **environment) as server,
        sse(server.url, run, "?until=run") as events,
    ):
        assert types([await events.next()]) == ["snapshot"]
        postgres.execute(f"ALTER ROLE {role} PASSWORD 'two'")
        postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        await wait_until_ready(server.url, ready=False, because="password authentication failed")
        secret.write_text(form.format("two"))
        await wait_until_ready(server.url)
        await airflow.set_task(run, "ask", "scheduled")
        assert types([await events.next()]) == ["task"]


@pytest.mark.parametrize(
    ("file", "command", "reason"),
    [
        ("/none", None, "can't be read"),
        ("{empty}", None, "the password is empty"),
        (None, "/none", "can't be started"),
        (None, "it's", "can't be started"),
        (None, f"{sys.executable} -c 'raise SystemExit(3)'", "exit code 3"),
        (None, f"{sys.executable} -c 'import time; time.sleep(60)'", "within 0.2 s"),
        (None, "true", "the password is empty"),
    ],
)
async def test_a_password_that_cannot_be_read_is_named(
    journal: str, tmp_path: Path, file: str | None, command: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password_source, "COMMAND_SECONDS", 0.2 if "sleep" in (command or "") else 10)
    empty = tmp_path / "empty"
    empty.write_text("\n")
    url = add_password_source(journal, file and file.format(empty=empty), command)
    with pytest.raises(JournalUnreachable, match=reason):
        await fetch_status(url)

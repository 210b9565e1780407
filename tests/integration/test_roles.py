"""Three roles, none a superuser: Airflow's, the owner of the journal, and the server's."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.runner import DoctorTargets, run_checks
from stream_server.domain.run_state import RunKey
from stream_server.errors import InstallError, JournalForbidden
from stream_server.journal.installer import (
    build_install_sql,
    disable_triggers,
    enable_triggers,
    fetch_status,
    install_journal,
    uninstall_journal,
)
from stream_server.journal.privileges import READER_PRIVILEGES
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, ONLY_WITH_TRIES, AirflowSql
from support.server import running_server
from support.streams import DEADLINE, sse, websocket
from support.tries_tables import TRIES_TABLES
from support.waiting import eventually_answered, eventually_async

PRIVILEGES = """
SELECT c.oid::regclass::text, x.privilege_type FROM pg_class c, aclexplode(c.relacl) x WHERE x.grantee = $1::regrole
UNION SELECT nspname::text, x.privilege_type FROM pg_namespace n, aclexplode(n.nspacl) x WHERE x.grantee = $1::regrole
UNION SELECT proname::text, x.privilege_type FROM pg_proc p, aclexplode(p.proacl) x WHERE x.grantee = $1::regrole
"""

OPERATIONS = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


def documented_statements(start: str, **names: str) -> str:
    """Return the statements in the docs that start with a text, with the test's names."""
    (block,) = re.findall(rf"```sql\n({re.escape(start)}.+?)```", OPERATIONS, re.DOTALL)
    for name, ours in names.items():
        block = block.replace(f" {name};", f" {ours};").replace(f" {name} ", f" {ours} ")
    return str(block)


@pytest.fixture
def role(postgres: EmbeddedPostgres, airflow_database: str) -> Iterator[Callable[[str], str]]:
    """A function that creates a role that can log in, and returns its name."""
    made: list[str] = []

    def make(name: str) -> str:
        made.append(f"{name}_{os.getpid()}")
        postgres.execute(f"CREATE ROLE {made[-1]} LOGIN")
        return made[-1]

    yield make
    for name in made:
        postgres.execute(f"DROP OWNED BY {name} CASCADE", database=urlsplit(airflow_database).path[1:])
        postgres.execute(f"DROP ROLE {name}")


def url_as(role: str, url: str) -> str:
    return url.replace("//airflow@", f"//{role}@")


async def fetch(url: str, query: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()


async def install_for(url: str, reader: str | None) -> None:
    await install_journal(url, "public", lock_timeout=1, attempts=1, reader=reader)


async def privileges(url: str, role: str) -> set[tuple[str, str]]:
    return {tuple(row) for row in await fetch(url, PRIVILEGES, role)}


async def grant_read(url: str, reader: str) -> None:
    """As Airflow's role, grant another role SELECT on the tables that streams need."""
    await execute(url, documented_statements("GRANT SELECT", stream_reader=reader))


async def execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()


async def is_superuser(url: str) -> bool:
    ((answer,),) = await fetch(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    return bool(answer)


async def assert_serves(url: str, airflow: AirflowSql, run: RunKey) -> None:
    """Check that a server streams over both transports, prunes, and restores missing triggers."""
    settings = Settings.load(database_url=url, port=0, retention="1s", check_interval="200ms", grace_period=2.0)
    await airflow.connection.execute("UPDATE stream_server.journal SET at = at - interval '1 hour'")
    async with running_server(settings) as server, httpx.AsyncClient(base_url=server.url) as client:
        await eventually_async(lambda: server.hub.is_live)
        async with sse(server.url, run) as events, websocket(server.url, run) as socket:
            await airflow.run_task(run, "answer", {"read": "only"})
            assert (await events.rest())[-2]["results"] == {"answer": {"read": "only"}}
            assert json.loads(await socket.recv())["type"] == "snapshot"

        async def is_pruned() -> bool:
            oldest = await airflow.connection.fetchval(
                "SELECT min(at) < now() - interval '50 min' FROM stream_server.journal"
            )
            return not oldest

        await eventually_answered(is_pruned, what="old rows are deleted")
        await airflow.connection.execute("DROP TRIGGER stream_server_xcom ON xcom")

        async def is_complete() -> bool:
            return (await fetch_status(url)).problems == [] and (await client.get("/ready")).status_code == 200

        await eventually_answered(is_complete, within=DEADLINE, what="the trigger is back")
    report = await run_checks(DoctorTargets(database_url=url))
    assert report.is_healthy, report.format_lines()
    finding = report.get("privileges")
    assert finding is not None
    assert finding.level is Level.OK


async def test_a_reader_gets_what_serve_needs_and_nothing_else(
    airflow_database: str, role: Callable[[str], str]
) -> None:
    reader = role("reader")
    await install_for(airflow_database, reader)
    given = await privileges(airflow_database, reader)
    # PUBLIC can already use the schema `public`.
    wanted = {
        (one.name or one.schema, one.privilege)
        for one in READER_PRIVILEGES
        if (one.name or one.schema) and one.name not in ONLY_WITH_TRIES
    }
    assert {(name.rpartition(".")[2], privilege) for name, privilege in given} == wanted
    await install_for(airflow_database, reader)
    assert await privileges(airflow_database, reader) == given
    url = url_as(reader, airflow_database)
    assert not await is_superuser(url)
    async with AirflowSql.open(airflow_database) as airflow:
        version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
        run = RunKey("chat", "r1")
        await airflow.trigger(run, version, list(CHAIN))
        await assert_serves(url, airflow, run)
    for forbidden in (
        *("DELETE FROM stream_server.journal", "UPDATE dag_run SET state = 'failed'", "SELECT * FROM connection"),
        *("UPDATE stream_server.meta SET enabled = false", "SELECT stream_server.switch_off()"),
        "SELECT stream_server.ring()",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await fetch(url, forbidden)


async def test_a_reader_that_cannot_read_the_flag_of_the_triggers_is_reported(
    airflow_database: str, role: Callable[[str], str]
) -> None:
    """An earlier version has granted its privileges, before there was such a flag."""
    reader = role("reader")
    await install_for(airflow_database, reader)
    url = url_as(reader, airflow_database)
    assert (await fetch_status(url)).warnings == []
    await execute(airflow_database, f"REVOKE SELECT ON SEQUENCE stream_server.unknown_schema FROM {reader}")
    found = await fetch_status(url)
    (warning,) = found.warnings
    assert found.problems == []
    assert f"install --reader {reader}`" in warning
    async with (
        running_server(Settings.load(database_url=url, port=0)) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):

        async def is_reported() -> bool:
            ready = await client.get("/ready")
            return (ready.status_code, ready.json()["warnings"]) == (200, [warning])

        await eventually_answered(is_reported, DEADLINE, "the warning")
    await execute(airflow_database, warning.split("`")[-2])
    assert (await fetch_status(url)).warnings == []


@pytest.mark.parametrize(
    ("revoked", "consequence"),
    [
        ("SELECT ON slot_pool", "runs that wait for a pool are not explained"),
        ("SELECT ON SEQUENCE stream_server.unknown_schema", "switched themselves off"),
    ],
)
async def test_doctor_warns_of_a_missing_privilege_that_no_stream_needs(
    airflow_database: str, role: Callable[[str], str], revoked: str, consequence: str
) -> None:
    reader = role("reader")
    await install_for(airflow_database, reader)
    await execute(airflow_database, f"REVOKE {revoked} FROM {reader}")
    targets = DoctorTargets(database_url=url_as(reader, airflow_database))
    finding = (await run_checks(targets)).get("privileges")
    assert finding is not None
    assert (finding.level, len(finding.facts["missing"])) == (Level.WARNING, 1)
    assert consequence in finding.found
    await execute(airflow_database, f"REVOKE SELECT ON dag_run FROM {reader}")
    finding = (await run_checks(targets)).get("privileges")
    assert finding is not None
    assert (finding.level, len(finding.facts["missing"])) == (Level.PROBLEM, 2)


async def test_uninstall_revokes_the_grants_of_the_reader(airflow_database: str, role: Callable[[str], str]) -> None:
    reader, analyst = role("reader"), role("analyst")
    await fetch(airflow_database, f"GRANT SELECT ON dag_run, xcom TO {analyst}")
    before = await privileges(airflow_database, analyst)
    await install_for(airflow_database, reader)
    await uninstall_journal(airflow_database, lock_timeout=1, attempts=1)
    assert await privileges(airflow_database, reader) == set()
    assert await privileges(airflow_database, analyst) == before


async def test_another_schema_is_opened_to_the_reader_and_closed(
    airflow_database: str, role: Callable[[str], str]
) -> None:
    reader = role("reader")
    await fetch(airflow_database, 'CREATE SCHEMA "Air flow"')
    for table in ("task_instance", "task_instance_history", "dag_run", "xcom", "hitl_detail", "serialized_dag"):
        await fetch(airflow_database, f'ALTER TABLE {table} SET SCHEMA "Air flow"')
    await install_journal(airflow_database, "Air flow", lock_timeout=1, attempts=1, reader=reader)
    given = await privileges(airflow_database, reader)
    assert {("Air flow", "USAGE"), ('"Air flow".xcom', "SELECT")} <= given
    finding = (await run_checks(DoctorTargets(database_url=url_as(reader, airflow_database)))).get("privileges")
    assert finding is not None
    assert finding.level is Level.OK
    await uninstall_journal(airflow_database, lock_timeout=1, attempts=1)
    assert await privileges(airflow_database, reader) == set()


async def test_a_missing_reader_role_is_reported(airflow_database: str) -> None:
    with pytest.raises(
        InstallError, match=r'Role "no such" does not exist; create it first: CREATE ROLE "no such" LOGIN'
    ):
        await install_for(airflow_database, "no such")
    assert not (await fetch_status(airflow_database)).installed


async def test_the_printed_sql_has_the_grants(airflow_database: str, role: Callable[[str], str]) -> None:
    reader = role("reader")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "install", "--print-sql", "--reader", reader),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert build_install_sql("public", reader) in output.decode()
    await execute(airflow_database, output.decode())
    assert ("stream_server.journal", "SELECT") in await privileges(airflow_database, reader)


async def test_an_owner_needs_only_the_trigger_privilege(
    postgres: EmbeddedPostgres, airflow_database: str, role: Callable[[str], str]
) -> None:
    """The owner of the journal needs no right to read or write Airflow's tables."""
    owner, reader = role("owner"), role("reader")
    database = urlsplit(airflow_database).path[1:]
    url = url_as(owner, airflow_database)
    postgres.execute(documented_statements("GRANT CREATE", airflow=database, stream_owner=owner), database=database)
    with pytest.raises(InstallError, match="lacks a privilege: permission denied for table"):
        await install_for(url, reader)
    assert not (await fetch_status(airflow_database)).installed
    await grant_read(airflow_database, reader)
    await install_for(url, reader)
    await install_for(url, reader)

    async with AirflowSql.open(airflow_database) as airflow:
        version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
        run = RunKey("chat", "r1")
        await airflow.trigger(run, version, list(CHAIN))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await airflow.connection.fetch("SELECT * FROM stream_server.journal")
        kinds = [row["kind"] for row in await fetch(url, "SELECT kind FROM stream_server.journal ORDER BY id")]
        assert kinds == ["run", "task", "task", "task"]
        for table in ("dag_run", "xcom"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await fetch(url, f"SELECT * FROM {table}")
        await disable_triggers(url)
        await enable_triggers(url)
        await airflow.connection.execute("ALTER TABLE xcom DISABLE TRIGGER stream_server_xcom")
        assert (await fetch_status(url)).problems == ["trigger stream_server_xcom on xcom is disabled"]
        await install_for(url, reader)
        assert (await fetch_status(url)).problems == []

    assert not any([await is_superuser(url_as(name, airflow_database)) for name in ("airflow", owner, reader)])
    await uninstall_journal(url, lock_timeout=1, attempts=1)
    ((triggers,),) = await fetch(airflow_database, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal")
    assert triggers == 0


async def test_an_owner_must_read_tries_and_regions(
    postgres: EmbeddedPostgres, airflow_database: str, role: Callable[[str], str]
) -> None:
    """The triggers look them up from Airflow 3.4 on. `airflow db reset` makes the tables without the privileges."""
    owner = role("owner")
    database = urlsplit(airflow_database).path[1:]
    url = url_as(owner, airflow_database)
    postgres.execute(documented_statements("GRANT CREATE", airflow=database, stream_owner=owner), database=database)
    await execute(airflow_database, TRIES_TABLES)
    may_trigger, may_read, _ = documented_statements("GRANT TRIGGER ON xcom_v2", stream_owner=owner).split(";", 2)
    await execute(airflow_database, may_trigger)
    lacks = f"owner of the trigger functions, {owner}, lacks SELECT on "
    with pytest.raises(InstallError, match=f"{lacks}task_instance, dynamic_region"):
        await install_for(url, None)
    assert not (await fetch_status(airflow_database)).installed

    await execute(airflow_database, may_read)
    await install_for(url, None)
    assert (await fetch_status(url)).problems == []
    await execute(airflow_database, f"REVOKE SELECT ON dynamic_region FROM {owner}")
    (problem,) = (await fetch_status(url)).problems
    assert f"{lacks}dynamic_region, so" in problem


async def test_a_journal_of_another_owner_is_served(
    postgres: EmbeddedPostgres, airflow_database: str, role: Callable[[str], str]
) -> None:
    owner, reader = role("owner"), role("reader")
    database = urlsplit(airflow_database).path[1:]
    postgres.execute(documented_statements("GRANT CREATE", airflow=database, stream_owner=owner), database=database)
    await grant_read(airflow_database, reader)
    await install_for(url_as(owner, airflow_database), reader)
    postgres.execute(
        "GRANT USAGE ON SCHEMA stream_server TO airflow;"
        " GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA stream_server TO airflow",
        database=database,
    )
    async with AirflowSql.open(airflow_database) as airflow:
        version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
        run = RunKey("chat", "r1")
        await airflow.trigger(run, version, list(CHAIN))
        await assert_serves(url_as(reader, airflow_database), airflow, run)


async def test_a_role_without_the_right_is_refused(airflow_database: str, role: Callable[[str], str]) -> None:
    role_without_rights = role("stranger")
    with pytest.raises((InstallError, JournalForbidden), match="permission denied"):
        await install_for(url_as(role_without_rights, airflow_database), None)

"""The journal is moved into another cluster, whose transaction ids have nothing to do with those in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import httpx
import pytest

from stream_server.cli.demo.ports import LOOPBACK
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.cli.doctor.database_session import ReadOnlySession
from stream_server.cli.doctor.journal_checks import JournalChecks
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.thresholds import Thresholds
from stream_server.domain.run_state import RunKey
from stream_server.errors import JournalUnreachable
from stream_server.journal.installer import fetch_status, install_journal
from stream_server.journal.privileges import build_grants_sql
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.other_cluster import dump, dump_and_restore, new_cluster, pg_upgrade, use_up_transaction_ids
from support.postgres import create_database_with_journal, drop_database, running_postgres
from support.readiness import get_ready, wait_until_ready
from support.server import RunningServer, running_server, server_process
from support.standby import running_standby
from support.streams import DEADLINE, Events, Frame, sse, states, types
from support.tcp_proxy import TcpProxy
from support.waiting import eventually_answered, eventually_async

WATCHED = "?until=run"
OTHER = "the journal is that of another cluster"


@pytest.fixture(scope="module")
def target() -> Iterator[EmbeddedPostgres]:
    """A cluster whose transaction ids are below those of the source, after `use_up_transaction_ids`."""
    with new_cluster() as server:
        yield server


@pytest.fixture
async def database(postgres: EmbeddedPostgres, target: EmbeddedPostgres) -> AsyncIterator[str]:
    """Name of a database with the journal installed, in the source."""
    name = await create_database_with_journal(postgres)
    yield name
    drop_database(postgres, name)
    target.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
async def run(postgres: EmbeddedPostgres, database: str) -> RunKey:
    """A run of two tasks that was just triggered."""
    async with AirflowSql.open(postgres.url(database)) as airflow:
        version = await airflow.add_dag("chat", {"ask": ["answer"], "answer": []})
        key = RunKey("chat", "r1")
        await airflow.trigger(key, version, ["ask", "answer"])
    return key


@pytest.fixture(params=["ahead", "behind"])
def ids(request: pytest.FixtureRequest, postgres: EmbeddedPostgres, target: EmbeddedPostgres) -> str:
    """Whether the transaction ids of the source are ahead of those of the target."""
    if request.param == "ahead":
        use_up_transaction_ids(postgres, max(0, next_id(target) - next_id(postgres)) + 20_000)
    else:
        use_up_transaction_ids(target, max(0, next_id(postgres) - next_id(target)) + 20_000)
    return str(request.param)


def next_id(postgres: EmbeddedPostgres) -> int:
    return int(postgres.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))


async def count_rows(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM stream_server.journal"))
    finally:
        await connection.close()


@asynccontextmanager
async def server_at(url: str, **options: object) -> AsyncIterator[RunningServer]:
    async with running_server(Settings.load(database_url=url, port=0, grace_period=2.0, **options)) as server:
        yield server


async def read_up_to(events: Events, task_id: str, state: str) -> list[Frame]:
    """Return all frames up to a transition."""
    frames = [await events.next()]
    while (frames[-1].get("task_id"), frames[-1].get("state")) != (task_id, state):
        frames.append(await events.next())
    return frames


async def test_a_restored_dump_starts_a_new_history(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey, ids: str
) -> None:
    async with AirflowSql.open(postgres.url(database)) as airflow:
        await airflow.set_task(run, "ask", "scheduled")
        await airflow.connection.execute("UPDATE stream_server.meta SET pruned_to = pg_current_xact_id()")
    async with server_at(postgres.url(database)) as server:
        await wait_until_ready(server.url)
        async with sse(server.url, run, WATCHED) as events:
            await events.next()
            cursor = events.ids[-1]
    dump_and_restore(postgres, database, target)
    url = target.url(database)
    before = await fetch_status(url)
    assert OTHER in "; ".join(before.problems)
    assert await count_rows(url) > 0

    async with server_at(url, poll_interval="100ms") as server:
        await wait_until_ready(server.url)
        after = await fetch_status(url)
        assert (after.problems, after.foreign) == ([], None)
        assert after.epoch != before.epoch
        async with (
            sse(server.url, run, WATCHED) as events,
            sse(server.url, run, WATCHED, headers={"Last-Event-ID": cursor or ""}) as resumed,
            AirflowSql.open(url) as airflow,
        ):
            assert types([await events.next()]) == ["snapshot"]
            reset, snapshot = await resumed.next(), await resumed.next()
            assert (reset["reason"], snapshot["type"]) == ("cursor_foreign", "snapshot")
            for state in ("queued", "running", "success"):
                await airflow.set_task(run, "ask", state)
                frames = await read_up_to(events, "ask", state)
                assert types(frames) == ["task"]
            assert states(await read_up_to(resumed, "ask", "success"), "ask") == ["queued", "running", "success"]
        assert await count_rows(url) == 3, "the rows of the other cluster are gone"


async def test_install_starts_a_new_history(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    dump_and_restore(postgres, database, target)
    url = target.url(database)
    before = await fetch_status(url)
    await install_journal(url, "public", lock_timeout=5, attempts=1)
    after = await fetch_status(url)
    assert after.problems == []
    assert after.epoch != before.epoch
    assert await count_rows(url) == 0
    await install_journal(url, "public", lock_timeout=5, attempts=1)
    assert (await fetch_status(url)).epoch == after.epoch


@pytest.mark.parametrize("evidence", ["oid", "future"])
async def test_other_evidence_where_the_identifier_is_hidden(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey, evidence: str
) -> None:
    """As on Aurora, and for roles that may not call the function."""
    use_up_transaction_ids(postgres, max(0, next_id(target) - next_id(postgres)) + 20_000)
    async with AirflowSql.open(postgres.url(database)) as airflow:
        await airflow.set_task(run, "ask", "scheduled")
    dump_and_restore(postgres, database, target)
    target.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC", database)
    known = "NULL" if evidence == "future" else "journal_oid"
    target.execute(f"UPDATE stream_server.meta SET journal_oid = {known}", database)
    if evidence == "oid":
        target.execute("TRUNCATE stream_server.journal; UPDATE stream_server.meta SET pruned_to = NULL", database)
    url = target.url(database)
    before = await fetch_status(url)
    assert "that of another cluster" in "; ".join(before.problems)
    async with server_at(url) as server:
        await wait_until_ready(server.url)
        after = await fetch_status(url)
        assert after.problems == []
        assert after.epoch != before.epoch


async def test_a_journal_of_this_cluster_keeps_its_history(
    postgres: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    before = await fetch_status(postgres.url(database))
    rows = await count_rows(postgres.url(database))
    for _ in range(2):
        async with server_at(postgres.url(database)) as server:
            await wait_until_ready(server.url)
    after = await fetch_status(postgres.url(database))
    assert (after.epoch, after.problems) == (before.epoch, [])
    assert await count_rows(postgres.url(database)) == rows


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reconnect_that_meets_another_cluster_causes_one_reset(
    postgres: EmbeddedPostgres,
    target: EmbeddedPostgres,
    database: str,
    run: RunKey,
    ids: str,
    workers: int,
    unused_tcp_port: int,
) -> None:
    async with AirflowSql.open(postgres.url(database)) as airflow:
        await airflow.set_task(run, "ask", "scheduled")
    dump_and_restore(postgres, database, target)
    address = f"http://{LOOPBACK}:{unused_tcp_port}"
    async with (
        TcpProxy.listen(postgres.port) as proxy,
        server_process(
            *("--port", str(unused_tcp_port), "--workers", str(workers), "--poll-interval", "100ms"),
            STREAM_SERVER_DATABASE_URL=f"postgresql://airflow@{LOOPBACK}:{proxy.port}/{database}",
        ),
    ):
        await eventually_answered(lambda: is_ready(address), 60, "the server is ready")
        async with sse(address, run, WATCHED) as events, AirflowSql.open(target.url(database)) as airflow:
            await events.next()
            await proxy.switch_to(target.port)
            assert (await events.until("reset"))[-1]["reason"] == "journal_changed"
            assert (await events.next())["type"] == "snapshot"
            for state in ("queued", "running", "success"):
                await airflow.set_task(run, "ask", state)
                assert types(await read_up_to(events, "ask", state)) == ["task"]
            await wait_until_ready(address)


async def is_ready(address: str) -> bool:
    with suppress(httpx.TransportError):
        return (await get_ready(address))[0] == 200
    return False


async def test_a_replica_reports_a_journal_of_another_cluster(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    dump_and_restore(postgres, database, target)
    with running_standby(target) as standby:
        await eventually_answered(lambda: has_journal(standby.url(database)), 20, "the standby has the database")
        async with server_at(standby.url(database)) as server:
            await wait_until_ready(server.url, ready=False, because=OTHER)
            await install_journal(target.url(database), "public", lock_timeout=5, attempts=1)
            await wait_until_ready(server.url)


async def has_journal(url: str) -> bool:
    with suppress(JournalUnreachable):
        return (await fetch_status(url)).installed
    return False


async def test_pg_upgrade_starts_a_new_history(postgres: EmbeddedPostgres, database: str, run: RunKey) -> None:
    """It keeps the transaction ids, but nothing proves that: the new cluster has an identifier of its own."""
    with new_cluster() as old, new_cluster() as new:
        dump_and_restore(postgres, database, old)
        await install_journal(old.url(database), "public", lock_timeout=5, attempts=1)
        before = await fetch_status(old.url(database))
        assert before.problems == []
        await asyncio.to_thread(pg_upgrade, old, new)
        assert OTHER in "; ".join((await fetch_status(new.url(database))).problems)
        async with server_at(new.url(database)) as server:
            await wait_until_ready(server.url)
            after = await fetch_status(new.url(database))
            assert (after.epoch == before.epoch, after.problems) == (False, [])


async def test_a_reader_without_ownership_starts_a_new_history(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    """The role of a server may have no more rights than `install --reader` grants."""
    role = f"reader_of_{database}"
    dump_and_restore(postgres, database, target)
    target.execute(f"CREATE ROLE {role} LOGIN")
    target.execute(build_grants_sql(role, "public"), database)
    url = target.url(database, role)
    before = await fetch_status(url)
    assert OTHER in "; ".join(before.problems)
    async with server_at(url) as server:
        await wait_until_ready(server.url)
        assert (await fetch_status(url)).epoch != before.epoch
    target.execute(f"DROP OWNED BY {role}", database)
    target.execute(f"DROP ROLE {role}")


async def test_the_doctor_reports_a_journal_of_another_cluster(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    dump_and_restore(postgres, database, target)
    limits = Thresholds()
    session = ReadOnlySession(target.url(database), limits.check_timeout)
    try:
        finding = await JournalChecks(session, limits).check_triggers()
    finally:
        await session.close()
    assert finding.level is Level.PROBLEM
    assert OTHER in finding.found


async def test_a_transaction_in_the_way_is_reported(
    postgres: EmbeddedPostgres, target: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    dump_and_restore(postgres, database, target)
    url = target.url(database)
    async with AirflowSql.open(url) as airflow:
        transaction = airflow.connection.transaction()
        await transaction.start()
        await airflow.set_task(run, "ask", "scheduled")
        async with server_at(url) as server:
            await wait_until_ready(server.url, ready=False, because="long transactions")
            await transaction.commit()
            await wait_until_ready(server.url)
            async with sse(server.url, run, WATCHED) as events:
                assert states([await events.next()], "ask") == []


async def test_another_server_notices_a_new_history(postgres: EmbeddedPostgres, database: str, run: RunKey) -> None:
    """The journal gets a new epoch while another server is connected to it."""
    url = postgres.url(database)
    async with server_at(url, poll_interval="100ms") as server:
        await wait_until_ready(server.url)
        async with sse(server.url, run, WATCHED) as events, AirflowSql.open(url) as airflow:
            await events.next()
            await airflow.connection.execute("UPDATE stream_server.meta SET journal_oid = 0")
            assert await airflow.connection.fetchval("SELECT stream_server.adopt()")
            assert (await events.until("reset"))[-1]["reason"] == "journal_changed"
            assert (await events.next())["type"] == "snapshot"
            await airflow.set_task(run, "ask", "scheduled")
            assert types(await read_up_to(events, "ask", "scheduled")) == ["task"]


async def test_a_running_server_finds_ids_of_another_cluster(
    postgres: EmbeddedPostgres, database: str, run: RunKey
) -> None:
    """Replication by other means than a subscription brings rows while the server is connected."""
    url = postgres.url(database)
    async with server_at(url, check_interval="200ms") as server:
        await wait_until_ready(server.url)
        async with sse(server.url, run, WATCHED) as events, AirflowSql.open(url) as airflow:
            await events.next()
            await airflow.connection.execute(
                "INSERT INTO stream_server.journal (txid, kind, dag_id, run_id) VALUES"
                " ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000000)::text::xid8, 'run', 'chat', 'r1')"
            )
            assert (await events.until("reset"))[-1]["reason"] == "journal_changed"
            await events.next()
            await eventually_async(lambda: server.hub.is_live)
            assert await count_rows(url) == 0
            await wait_until_ready(server.url)


async def test_logical_replication_is_reported_until_the_subscription_is_dropped(
    target: EmbeddedPostgres,
) -> None:
    with running_postgres({"wal_level": "logical"}) as source:
        database = await create_database_with_journal(source)
        key = RunKey("chat", "r1")
        async with AirflowSql.open(source.url(database)) as airflow:
            version = await airflow.add_dag("chat", {"ask": ["answer"], "answer": []})
            await airflow.trigger(key, version, ["ask", "answer"])
        target.execute(f"CREATE DATABASE {database} OWNER airflow")
        target.execute(dump(source, database, "--schema-only"), database)
        source.execute("CREATE PUBLICATION everything FOR ALL TABLES", database)
        connection = f"host={LOOPBACK} port={source.port} user=postgres dbname={database}"
        target.execute(f"CREATE SUBSCRIPTION moved CONNECTION '{connection}' PUBLICATION everything", database)
        url = target.url(database)
        try:
            await eventually_answered(lambda: has_rows(url), 30, "the first copy is done")
            assert "a subscription" in "; ".join((await fetch_status(url)).problems)
            async with server_at(url, check_interval="200ms") as server:
                await wait_until_ready(server.url, ready=False, because="a subscription")
                # An update of the row of the source replaces the whole row of the target.
                source.execute("UPDATE stream_server.meta SET pruned_to = '5'", database)
                await eventually_answered(lambda: is_pruned(url), DEADLINE, "the update is replicated")
                before = await fetch_status(url)
                target.execute("DROP SUBSCRIPTION moved", database)
                await wait_until_ready(server.url)
                after = await fetch_status(url)
                assert (after.epoch == before.epoch, after.problems) == (False, [])
                async with sse(server.url, key, WATCHED) as events, AirflowSql.open(url) as airflow:
                    await events.next()
                    await airflow.set_task(key, "ask", "scheduled")
                    assert types(await read_up_to(events, "ask", "scheduled")) == ["task"]
        finally:
            target.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


async def has_rows(url: str) -> bool:
    return await count_rows(url) > 0 and (await fetch_status(url)).installed


async def is_pruned(url: str) -> bool:
    connection = await asyncpg.connect(url)
    try:
        return bool(await connection.fetchval("SELECT pruned_to = '5' FROM stream_server.meta"))
    finally:
        await connection.close()

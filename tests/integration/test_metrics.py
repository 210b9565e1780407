"""Metrics match what has happened."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from stream_server import __version__
from stream_server.cli.demo.postgres import EmbeddedPostgres
from stream_server.domain.run_state import RunKey
from stream_server.http.delivery.scheduler import TRANSPORTS
from stream_server.journal.installer import fetch_status
from stream_server.protocol.close_codes import CloseCode
from stream_server.settings import Settings
from support.airflow_sql import CHAIN, AirflowSql
from support.postgres import create_database_with_journal, drop_database, running_postgres
from support.server import RunningServer, running_server, terminate_connections
from support.streams import frames_of, sse, types, websocket
from support.waiting import eventually_answered, eventually_async

LABELS = {
    "why": {"ring", "poll", "load"},
    "reason": {"journal_changed", "transitions_lost"},
    "state": {"live", "dead"},
    "part": {"table", "index"},
    "transport": {*TRANSPORTS},
    "code": {code.name.lower() for code in CloseCode},
    "how": {"new", "resumed"},
}
"""All values of each label, except those of the build information and of histogram buckets."""


class Scrape(dict[str, float]):
    """Values by name and labels: `stream_server_reads_total{why=ring}`."""

    def part(self, name: str) -> float:
        """Return the value of one of our metrics."""
        return self[f"stream_server_{name}"]


async def scrape(server: RunningServer) -> Scrape:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = Scrape()
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation or family.name.endswith("_created"), f"{family.name} has no HELP"
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def wait_for_metric(server: RunningServer, name: str, least: float) -> Scrape:
    """Scrape until a metric has reached a value."""

    async def has_reached() -> Scrape | None:
        found = await scrape(server)
        return found if found.get(f"stream_server_{name}", -1) >= least else None

    found = await eventually_answered(has_reached, what=f"{name} at {least}")
    assert found is not None
    return found


@pytest.fixture
def frequent_checks(settings: Callable[..., Settings]) -> Settings:
    """Settings of a server that polls and checks often."""
    return settings(poll_interval="50ms", check_interval="50ms")


@asynccontextmanager
async def live_server(settings: Settings) -> AsyncIterator[RunningServer]:
    """Run a server whose tail has read once, so that it knows the number of earlier losses."""
    async with running_server(settings) as server:
        await wait_for_metric(server, "read_duration_seconds_count", 1)
        yield server


async def test_activity_of_a_stream_is_counted(airflow: AirflowSql, frequent_checks: Settings, run: RunKey) -> None:
    async with live_server(frequent_checks) as server:
        before = await scrape(server)
        assert (before.part("tail_connected"), before.part("doorbell_heard"), before.part("problems")) == (1, 1, 0)
        assert (before.part("watched_runs"), before.part("open_streams")) == (0, 0)
        async with sse(server.url, run, "?until=run") as events:
            await events.next()
            await airflow.complete_chain(run)
            await events.until("result")
            during = await wait_for_metric(server, "read_rows_total", before.part("read_rows_total") + 14)
            assert (during.part("watched_runs"), during.part("open_streams")) == (1, 1)
            assert during.part("reads_total{why=ring}") > before.part("reads_total{why=ring}")
            assert during.part("lag_seconds_count") == during.part("read_rows_total")
            assert during.part("read_duration_seconds_count") == sum(
                during.part(f"reads_total{{why={why}}}") for why in LABELS["why"]
            )
            assert 0 < during.part("read_duration_seconds_sum") < 60
        await eventually_answered(lambda: has_no_streams(server))
        assert before["process_cpu_seconds_total"] <= during["process_cpu_seconds_total"]
        assert [name for name in during if f"version={__version__}" in name] == [
            name for name in during if name.startswith("stream_server_build_info")
        ]


async def has_no_streams(server: RunningServer) -> bool:
    found = await scrape(server)
    return (found.part("watched_runs"), found.part("open_streams")) == (0, 0)


async def test_sent_frames_and_bytes_are_counted(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    async with live_server(settings(max_connection_age="1s", ping_interval="200ms")) as server:
        async with sse(server.url, run, "?until=run") as events, websocket(server.url, run) as connection:
            await events.next()
            await connection.recv()
            open_now = await scrape(server)
            assert [open_now.part(f"connections{{transport={one}}}") for one in ("sse", "websocket", "ndjson")] == [
                *(1, 1, 0)
            ]
            await airflow.set_task(run, "ask", "scheduled")
            frames = await events.rest()
            assert types(frames)[-1] == "close"
            assert frames[-1]["code"] == CloseCode.AGED
            assert types(await frames_of(connection))[-1] == "close"
            assert connection.close_code == CloseCode.AGED
        cursor = next(one for one in reversed(events.ids) if one is not None)
        async with sse(server.url, run, headers={"Last-Event-ID": cursor}) as again:
            assert (await again.next())["type"] == "resumed"
        found = await wait_for_metric(server, "closes_total{code=aged}", 2)
        sent = found.part("sent_frames_total{transport=sse}")
        assert sent >= len(frames) + 2, "the snapshot, and the frames after the resume"
        assert found.part("sent_bytes_total{transport=sse}") > 100 * sent / 2
        assert found.part("delivery_seconds_count") == 1
        assert 0 < found.part("delivery_seconds_sum") < 10
        assert found.part("join_duration_seconds_count{how=new}") == 2
        assert found.part("join_duration_seconds_count{how=resumed}") == 1
        assert found.part("unsent_bytes{transport=sse}") == 0


async def test_no_label_contains_a_dag_or_a_run(airflow: AirflowSql, frequent_checks: Settings, run: RunKey) -> None:
    async with live_server(frequent_checks) as server, sse(server.url, run) as events:
        await events.next()
        await airflow.complete_chain(run)
        await events.until("result")
        await wait_for_metric(server, "journal_bytes{part=table}", 1)
        async with httpx.AsyncClient(base_url=server.url) as client:
            text = (await client.get("/metrics")).text
    assert run.dag_id not in text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for name, value in sample.labels.items():
                assert name in {"le", "version", "python"} or value in LABELS[name], sample


async def test_size_of_the_journal_is_exported(airflow: AirflowSql, frequent_checks: Settings) -> None:
    async with live_server(frequent_checks) as server:
        await airflow.connection.execute(
            "INSERT INTO stream_server.journal (kind) SELECT 'task' FROM generate_series(1, 2000)"
        )
        await airflow.connection.execute("ANALYZE stream_server.journal")
        found = await wait_for_metric(server, "journal_rows{state=live}", 2000)
        assert found.part("journal_bytes{part=table}") == await airflow.connection.fetchval(
            "SELECT pg_table_size('stream_server.journal') + pg_table_size('stream_server.output')"
        )
        assert found.part("journal_bytes{part=index}") == await airflow.connection.fetchval(
            "SELECT pg_indexes_size('stream_server.journal') + pg_indexes_size('stream_server.output')"
        )
        assert 0 <= found.part("notify_queue_usage_ratio") < 0.5
        assert found.part("losses_total") == 0


async def test_dropped_writes_and_resyncs_are_counted(
    airflow: AirflowSql, frequent_checks: Settings, run: RunKey
) -> None:
    async with live_server(frequent_checks) as server:
        await airflow.connection.execute("REVOKE INSERT ON stream_server.journal FROM airflow")
        await airflow.set_task(run, "ask", "scheduled")
        await airflow.connection.execute("GRANT INSERT ON stream_server.journal TO airflow")
        await wait_for_metric(server, "losses_total", 1)
        found = await wait_for_metric(server, "begun_anew_total{reason=transitions_lost}", 1)
        assert found.part("begun_anew_total{reason=journal_changed}") == 0


async def test_lost_connections_are_counted(airflow: AirflowSql, frequent_checks: Settings) -> None:
    async with live_server(frequent_checks) as server:
        assert (await scrape(server)).part("connections_lost_total") == 0
        assert await terminate_connections(airflow.connection) > 0
        await wait_for_metric(server, "connections_lost_total", 1)
        await wait_for_metric(server, "tail_connected", 1)


async def test_scrape_sends_no_query(
    postgres: EmbeddedPostgres, airflow: AirflowSql, frequent_checks: Settings
) -> None:
    async with live_server(frequent_checks) as server:
        await wait_for_metric(server, "journal_bytes{part=table}", 1)
        postgres.stop("immediate")
        found = await wait_for_metric(server, "connections_lost_total", 1)
        assert (found.part("tail_connected"), found.part("doorbell_heard")) == (0, 0)
        assert found.part("problems") == 1
        assert found.part("journal_bytes{part=table}") > 0
        measured = found.part("measured_timestamp_seconds")
        postgres.start()
        await wait_for_metric(server, "measured_timestamp_seconds", measured + 0.001)


async def test_deleted_rows_are_counted(airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey) -> None:
    async with live_server(settings(retention="100ms")) as server:
        await wait_for_metric(server, "pruned_rows_total", 4)


async def test_each_application_has_its_own_metrics(
    airflow: AirflowSql, settings: Callable[..., Settings], run: RunKey
) -> None:
    async with live_server(settings()) as one, live_server(settings()) as other, sse(one.url, run) as events:
        await events.next()
        assert (await scrape(one)).part("open_streams") == 1
        assert (await scrape(other)).part("open_streams") == 0


async def test_openmetrics_is_sent_if_accepted(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "stream_server_reads" in {family.name for family in openmetrics_families(answer.text)}  # type: ignore[no-untyped-call]


async def test_invalid_accept_header_gets_the_plain_format(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.x"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.fixture(scope="module")
def small_queue() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL whose notification queue is as short as possible, 64 pages."""
    with running_postgres({"max_notify_queue_pages": "64"}) as server:
        yield server


@pytest.fixture
async def small_queue_database(small_queue: EmbeddedPostgres) -> AsyncIterator[str]:
    """URL of an Airflow database with the journal, on `small_queue`."""
    name = await create_database_with_journal(small_queue)
    yield small_queue.url(name)
    drop_database(small_queue, name)


@asynccontextmanager
async def blocked_notification_queue(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Have a session listen in an open transaction, so that the queue cannot be emptied; yield another session."""
    listener, other = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        await listener.execute("LISTEN blocked")
        await listener.execute("BEGIN")
        yield other
    finally:
        await listener.close()
        await other.close()


async def test_full_notification_queue_fails_no_transaction_of_airflow(small_queue_database: str) -> None:
    settings = Settings.load(database_url=small_queue_database, port=0, poll_interval="50ms")
    async with live_server(settings) as server, AirflowSql.open(small_queue_database) as airflow:
        version = await airflow.add_dag("chat", CHAIN, {"clean_up": False})
        key = RunKey("chat", "run")
        await airflow.trigger(key, version, list(CHAIN))
        async with sse(server.url, key) as events, blocked_notification_queue(small_queue_database) as session:
            await events.next()
            with pytest.raises(asyncpg.PostgresError, match="too many notifications"):
                await fill_queue(session, 100)
            await airflow.run_task(key, "answer", "not notified")
            assert (await events.until("result"))[-1]["results"] == {"answer": "not notified"}
    assert (await fetch_status(small_queue_database)).losses == 0


async def fill_queue(session: asyncpg.Connection[asyncpg.Record], pages: int) -> None:
    """Send notifications whose payloads fill a page each."""
    await session.execute(
        "SELECT pg_notify('blocked', number || repeat('x', 7900)) FROM generate_series(1, $1) AS number", pages
    )


async def test_filling_notification_queue_is_a_warning(
    small_queue_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.load(database_url=small_queue_database, port=0, check_interval="50ms")
    async with live_server(settings) as server, blocked_notification_queue(small_queue_database) as session:
        await wait_for_metric(server, "measured_timestamp_seconds", 1)
        assert (await scrape(server)).part("notify_queue_usage_ratio") < 0.5
        await fill_queue(session, 40)
        await wait_for_metric(server, "notify_queue_usage_ratio", 0.5)
        async with httpx.AsyncClient(base_url=server.url) as client:
            answer = await client.get("/ready")
        assert (answer.status_code, answer.json()["problems"]) == (200, [])
        assert "notification queue is 6" in answer.json()["warnings"][0]
        await eventually_async(
            lambda: any(
                "notification queue is" in one.message for one in caplog.records if one.levelno == logging.WARNING
            )
        )

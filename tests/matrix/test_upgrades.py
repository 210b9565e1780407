"""`airflow db migrate` from version to version, with the triggers installed and rows in the tables."""

from __future__ import annotations

import itertools

import pytest

from matrix.streaming_checks import (
    EAGER,
    assert_completed,
    assert_native_marks,
    assert_streams,
    new_run,
    ready,
    serving,
)
from matrix.upgraded_databases import HAS_FIRST, NEWEST, VERSIONS, Ladder
from matrix.versioned_sql import LEAVES, VersionedSql, ask_human
from stream_server.domain.run_state import RunKey
from stream_server.journal.installer import fetch_status
from support.skipping import leave_out
from support.streams import sse, states

STEPS = list(itertools.pairwise(VERSIONS))

NEW_TABLES = {"3.1.8": ["trigger stream_server_input on hitl_detail is missing"]}
"""What a version brings that only `install` can see to."""


@pytest.mark.parametrize(("before", "version"), STEPS)
async def test_an_upgrade_keeps_rows_journal_and_triggers(ladder: Ladder, before: str, version: str) -> None:
    below, rung = await ladder.reach(before), await ladder.reach(version)
    assert rung.rows == below.rows
    assert rung.epoch == below.epoch
    assert rung.problems == NEW_TABLES.get(version, [])
    found = await fetch_status(await ladder.copy(version))
    assert (found.problems, found.losses) == ([], 0)


@pytest.mark.parametrize("version", VERSIONS)
async def test_streaming_works_at_each_version(ladder: Ladder, version: str) -> None:
    url = await ladder.copy(version)
    async with serving(url) as server:
        assert await ready(server) == (200, [])
        await assert_streams(url, server)


async def test_marks_of_the_newest_version_are_seen(ladder: Ladder) -> None:
    url = await ladder.copy(NEWEST)
    async with serving(url) as server:
        await assert_native_marks(url, server)


@pytest.mark.parametrize("version", VERSIONS[1:])
async def test_what_waits_for_a_human_is_recorded(ladder: Ladder, version: str) -> None:
    async with VersionedSql.open(await ladder.copy(version)) as airflow:
        await ask_human(airflow, RunKey("history", "manual__queued"), "ask")
        kinds = await airflow.connection.fetch("SELECT kind FROM stream_server.journal ORDER BY id DESC LIMIT 1")
    assert [row["kind"] for row in kinds] == ["input"]


@pytest.mark.parametrize(("before", "version"), STEPS)
async def test_a_server_and_its_streams_outlive_an_upgrade(ladder: Ladder, before: str, version: str) -> None:
    url = await ladder.copy(before)
    async with serving(url) as server:
        async with VersionedSql.open(url) as airflow:
            key = await new_run(airflow, LEAVES, {})
            await airflow.set_run(key, "running")
        async with sse(server.url, key, "?result=answer", timeout=60) as events:
            assert (await events.next())["type"] == "snapshot"
            await ladder.airflow_db(version, url, "migrate")
            async with VersionedSql.open(url) as airflow:
                await airflow.run_task(key, "answer", "after all")
            frames = await events.rest()
        assert states(frames, "answer")[:3] == ["scheduled", "queued", "running"]
        assert frames[-2]["results"] == {"answer": "after all"}
        await assert_streams(url, server)


async def test_a_server_sees_marks_after_an_upgrade_under_it(ladder: Ladder) -> None:
    url = await ladder.copy("3.2.2")
    async with serving(url) as server:
        await assert_streams(url, server)
        await ladder.airflow_db(NEWEST, url, "migrate")
        await assert_native_marks(url, server)


async def test_a_server_puts_a_trigger_on_a_new_table(ladder: Ladder) -> None:
    if not HAS_FIRST:
        leave_out("Airflow 3.0, the only one without hitl_detail, needs Python 3.12 or older")
    url = await ladder.copy("3.0.6")
    async with serving(url, EAGER) as server:
        await ladder.airflow_db("3.1.8", url, "migrate")
        await assert_completed(url)
        await assert_streams(url, server)

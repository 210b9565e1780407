"""Runs that are stopped after the last client disconnects, or by the cancel endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.auth.airflow_api import MAX_FAIL_ATTEMPTS
from stream_server.domain.run_state import RunKey
from stream_server.http.cancellation import Cancellations
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import (
    COOKIES,
    TOKEN,
    WAIT,
    client_with_token,
    complete_run,
    run_path,
    wait_for_cancellation_decision,
    wait_for_pending_cancellation,
)
from support.server import RunningServer, running_server
from support.streams import Events, sse, types
from support.waiting import eventually_answered, eventually_async

KEY = RunKey("chat", "manual__1")
SHORT, LONG = f"{WAIT}&on_disconnect=cancel&grace=20ms", f"{WAIT}&on_disconnect=cancel&grace=1h"
WITHOUT_FUNCTIONS = (
    "DROP FUNCTION stream_server.wait(text[], text[], uuid, interval, boolean), "
    "stream_server.wait_no_more(text[], text[], uuid)"
)
"""Drops the functions that a journal of the previous version does not have."""

STREAM = {"Accept": "text/event-stream"}


async def state(airflow: AirflowSql) -> str:
    found: str = await airflow.connection.fetchval("SELECT state FROM dag_run WHERE run_id = $1", KEY.run_id)
    return found


async def disconnect_stream(caller: httpx.AsyncClient, path: str) -> None:
    """Trigger a run, watch it, and disconnect."""
    async with caller.stream("POST", path, json={}, headers=STREAM) as response:
        await Events(response).next()


async def disconnect_call(trigger_server: RunningServer, caller: httpx.AsyncClient, path: str) -> None:
    """Trigger a run, wait for its result, and disconnect."""
    calling = asyncio.create_task(caller.post(path, json={}))
    await eventually_async(lambda: trigger_server.hub.statistics().subscriptions == 1)
    calling.cancel()
    await asyncio.wait([calling])


@pytest.mark.parametrize("streams", [True, False])
async def test_a_run_is_stopped_after_its_client_disconnects(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, *, streams: bool
) -> None:
    await (disconnect_stream(caller, SHORT) if streams else disconnect_call(trigger_server, caller, SHORT))
    await eventually_async(lambda: stub.patches, what="the run is stopped")
    (patch,) = stub.patches
    assert patch.target == run_path("manual__1") + "?update_mask=state"
    assert patch.json == {"state": "failed"}
    assert (patch.headers["authorization"], patch.headers["cookie"]) == (TOKEN, COOKIES)
    await wait_for_cancellation_decision()
    assert await state(airflow) == "failed"


@pytest.mark.parametrize("path", [WAIT, f"{WAIT}&on_disconnect=continue"])
async def test_a_run_continues_after_a_disconnect_by_default(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, path: str
) -> None:
    await disconnect_stream(caller, path)
    await eventually_async(lambda: trigger_server.hub.statistics().subscriptions == 0)
    async with caller.stream("GET", run_path("manual__1") + "/stream"):
        pass
    await wait_for_cancellation_decision()
    assert stub.patches == []


async def test_a_reconnect_within_the_grace_period_keeps_the_run(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    # The grace period is long enough to reconnect on any machine.
    await disconnect_stream(caller, f"{WAIT}&on_disconnect=cancel&grace=500ms")
    async with sse(trigger_server.url, KEY) as events:
        await events.next()
        await wait_for_cancellation_decision()
        assert stub.patches == []
        await airflow.complete_chain(KEY)
        assert types(await events.rest())[-2:] == ["result", "end"]


async def test_a_reconnect_during_the_last_check_keeps_the_run(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_checked, is_reconnected = asyncio.Event(), asyncio.Event()
    check = Cancellations._is_undecided

    async def check_slowly(self: Cancellations, *arguments: Any) -> bool:
        is_undecided = await check(self, *arguments)
        is_checked.set()
        await is_reconnected.wait()
        return is_undecided

    monkeypatch.setattr(Cancellations, "_is_undecided", check_slowly)
    await disconnect_stream(caller, SHORT)
    await asyncio.wait_for(is_checked.wait(), 10)
    async with sse(trigger_server.url, KEY) as events:
        await events.next()
        is_reconnected.set()
        await wait_for_cancellation_decision()
        assert stub.patches == []


async def has_entries(airflow: AirflowSql, servers: int) -> bool:
    """Whether this number of servers has an entry for the run."""
    query = "SELECT count(*) FROM stream_server.waiters WHERE run_id = $1 AND expires > now()"
    return bool(await airflow.connection.fetchval(query, KEY.run_id) == servers)


async def test_a_reconnect_to_another_server_keeps_the_run(
    trigger_server: RunningServer,
    caller: httpx.AsyncClient,
    stub: AirflowStub,
    airflow: AirflowSql,
    settings: Callable[..., Settings],
) -> None:
    async with running_server(settings(airflow_url=stub.url)) as other:
        await eventually_async(lambda: other.hub.is_live)
        await disconnect_stream(caller, f"{WAIT}&on_disconnect=cancel&grace=2s")
        async with sse(other.url, KEY) as events:
            await events.next()
            await eventually_answered(lambda: has_entries(airflow, 2))
            await wait_for_cancellation_decision()
            assert stub.patches == []
            await airflow.complete_chain(KEY)
            assert types(await events.rest())[-2:] == ["result", "end"]
        await eventually_answered(lambda: has_entries(airflow, 0))


async def test_the_last_of_two_servers_stops_the_run(
    trigger_server: RunningServer,
    caller: httpx.AsyncClient,
    stub: AirflowStub,
    airflow: AirflowSql,
    settings: Callable[..., Settings],
) -> None:
    again = f"{SHORT}&if_exists=attach"
    async with running_server(settings(airflow_url=stub.url)) as other, client_with_token(other) as second:
        await eventually_async(lambda: other.hub.is_live)
        async with caller.stream("POST", SHORT, json={"dag_run_id": "manual__1"}, headers=STREAM) as response:
            watching = Events(response)
            await watching.next()
            async with second.stream("POST", again, json={"dag_run_id": "manual__1"}, headers=STREAM) as also:
                await Events(also).next()
                assert await has_entries(airflow, 2)
            await eventually_answered(lambda: has_entries(airflow, 1))
            await wait_for_cancellation_decision()
            assert stub.patches == []
        await eventually_async(lambda: stub.patches, what="the last one to go stops it")
    assert await state(airflow) == "failed"
    assert await has_entries(airflow, 0)


@pytest.mark.parametrize("statement", ["DROP TABLE stream_server.waiters CASCADE", WITHOUT_FUNCTIONS])
async def test_a_server_that_cannot_write_entries_decides_by_its_own_clients(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    await airflow.connection.execute(statement)
    await disconnect_stream(caller, SHORT)
    await eventually_async(lambda: stub.patches, what="the run is stopped")
    assert "Cannot register run" in caplog.text


async def test_the_run_continues_while_another_client_watches(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub
) -> None:
    async with caller.stream("POST", SHORT, json={"dag_run_id": "manual__1"}, headers=STREAM) as first:
        watching = Events(first)
        await watching.next()
        again = f"{SHORT}&if_exists=attach"
        async with caller.stream("POST", again, json={"dag_run_id": "manual__1"}, headers=STREAM) as second:
            await Events(second).next()
        await wait_for_pending_cancellation()
        await wait_for_cancellation_decision()
        assert stub.patches == []
    await eventually_async(lambda: stub.patches, what="the last one to go stops it")


async def test_a_run_with_a_result_is_not_stopped(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub
) -> None:
    stub.then = complete_run
    async with caller.stream("POST", SHORT, json={}, headers=STREAM) as response:
        await Events(response).until("end")
    await caller.post(SHORT, json={})
    await eventually_async(lambda: trigger_server.hub.statistics().subscriptions == 0)
    await wait_for_cancellation_decision()
    assert stub.patches == []


@pytest.mark.parametrize("ended", [True, False])
async def test_a_run_with_a_result_within_the_grace_period_is_not_stopped(
    trigger_server: RunningServer, caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, *, ended: bool
) -> None:
    """Failing it then would turn a success into a failure."""
    await disconnect_stream(caller, f"{WAIT}&on_disconnect=cancel&grace=1s")
    await wait_for_pending_cancellation()
    await (complete_run(airflow, KEY) if ended else airflow.complete_chain(KEY))
    await wait_for_cancellation_decision()
    assert stub.patches == []
    assert await state(airflow) == ("success" if ended else "running")


async def test_a_run_that_cannot_be_stopped_is_logged(
    caller: httpx.AsyncClient, stub: AirflowStub, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(received: ReceivedRequest) -> Response | None:
        if received.method != "PATCH":
            return None
        return JSONResponse({"detail": "Forbidden"}, 403)

    stub.instead = refuse
    with caplog.at_level(logging.WARNING):
        await disconnect_stream(caller, SHORT)
        await eventually_async(lambda: "could not be cancelled" in caplog.text)
    assert "Airflow answered 403" in caplog.text
    assert "secret" not in caplog.text


async def test_a_stopping_server_does_not_stop_runs(
    settings: Callable[..., Settings], stub: AirflowStub, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(settings(auth="none", airflow_url=stub.url)) as server:
        await eventually_async(lambda: server.hub.is_live)
        async with client_with_token(server) as caller:
            await disconnect_stream(caller, LONG)
            await wait_for_pending_cancellation()
            async with caller.stream(
                "POST", f"{SHORT}&if_exists=attach", json={"dag_run_id": "manual__1"}, headers=STREAM
            ) as response:
                events = Events(response)
                await events.next()
                stopping = asyncio.create_task(server.hub.drain(1))
                assert types(await events.rest())[-1] == "close"
                await stopping
    await wait_for_cancellation_decision()
    assert stub.patches == []
    assert "is not cancelled: the server stops" in caplog.text


async def test_the_cancel_endpoint_stops_a_run(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    await caller.post(f"{WAIT}&timeout=0", json={})
    stopped = await caller.post(run_path("manual__1") + "/cancel")
    assert stopped.status_code == 200
    assert stopped.json() == {"dag_id": "chat", "dag_run_id": "manual__1", "state": "failed"}
    assert await state(airflow) == "failed"
    (patch,) = stub.patches
    assert (patch.headers["authorization"], patch.json) == (TOKEN, {"state": "failed"})


@pytest.mark.parametrize(("faults", "status"), [(1, 200), (MAX_FAIL_ATTEMPTS - 1, 200), (MAX_FAIL_ATTEMPTS, 502)])
async def test_a_deadlock_with_the_scheduler_is_tried_again(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, faults: int, status: int
) -> None:
    async def fault(received: ReceivedRequest) -> Response | None:
        if received.method == "PATCH" and len(stub.patches) <= faults:
            return JSONResponse({"detail": {"reason": "Database error"}}, 500)
        return None

    await caller.post(f"{WAIT}&timeout=0", json={})
    stub.instead = fault
    stopped = await caller.post(run_path("manual__1") + "/cancel")
    assert stopped.status_code == status
    assert len(stub.patches) == min(faults + 1, MAX_FAIL_ATTEMPTS)
    assert await state(airflow) == ("failed" if status == 200 else "queued")


async def test_a_run_that_ends_between_two_attempts_is_not_changed(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    async def fault(received: ReceivedRequest) -> Response | None:
        if received.method != "PATCH":
            return None
        await complete_run(airflow, KEY)
        return JSONResponse({"detail": {"reason": "Database error"}}, 500)

    await caller.post(f"{WAIT}&timeout=0", json={})
    stub.instead = fault
    stopped = await caller.post(run_path("manual__1") + "/cancel")
    assert (stopped.status_code, stopped.json()["state"]) == (200, "success")
    assert len(stub.patches) == 1


async def test_the_cancel_endpoint_does_not_fail_a_finished_run(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql
) -> None:
    stub.then = complete_run
    await caller.post(WAIT, json={})
    late = await caller.post(run_path("manual__1") + "/cancel")
    assert (late.status_code, late.json()["state"]) == (200, "success")
    assert stub.patches == []
    assert await state(airflow) == "success"


async def test_an_unknown_run_cannot_be_stopped(caller: httpx.AsyncClient, stub: AirflowStub) -> None:
    answer = await caller.post(run_path("nothing") + "/cancel")
    assert (answer.status_code, answer.json()["title"]) == (404, "Refused by Airflow")
    assert (await caller.get(run_path("nothing") + "/cancel")).status_code == 405
